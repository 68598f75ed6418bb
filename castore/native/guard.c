#define _GNU_SOURCE
#include "guard.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* Regions live in blocks that are published once and never move or go away, so the handler walks
   them without a lock, whatever the threads are doing. 2,048 blocks of 512: 1,048,576 mappings,
   many times what the kernel allows a process (vm.max_map_count). */
enum { REGIONS_PER_BLOCK = 512, BLOCKS = 2048 };

struct guarded_region {
    atomic_uintptr_t begin, end; /* end 0: not in use */
    atomic_bool damaged;
    struct guarded_region *next_free;
};

static _Atomic(struct guarded_region *) blocks[BLOCKS];
static struct guarded_region *first_free;
static uintptr_t page_bytes;
static struct sigaction previous;
static atomic_int passing_on;
static atomic_uintptr_t passed_address; /* of the fault that was passed on last, */
static atomic_int passed_times;         /* and how often in a row */
enum { PASSED_TIMES_MAX = 16 };

/* ---- the handler: async-signal-safe from here on -------------------------------------------- */

static struct guarded_region *region_of(uintptr_t address)
{
    for (size_t b = 0; b < BLOCKS; b++) {
        struct guarded_region *block = atomic_load(&blocks[b]);
        if (block == NULL) {
            return NULL;
        }
        for (size_t r = 0; r < REGIONS_PER_BLOCK; r++) {
            if (address < atomic_load(&block[r].end) && address >= atomic_load(&block[r].begin)) {
                return &block[r];
            }
        }
    }
    return NULL;
}

static void die_by_default(int number)
{
    struct sigaction action = {.sa_handler = SIG_DFL};
    sigaction(number, &action, NULL);
    raise(number); /* SA_NODEFER: it is not blocked here */
}

/* A handler that returns without having mended anything, as that of Python's signal.signal does, is
   called for the same instruction again and again, and nothing else happens any more. */
static bool is_in_vain(const siginfo_t *info)
{
    const uintptr_t address = (uintptr_t)info->si_addr;
    if (info->si_code <= 0) {
        return false;
    }
    if (atomic_exchange(&passed_address, address) != address) {
        atomic_store(&passed_times, 0);
    }
    return atomic_fetch_add(&passed_times, 1) >= PASSED_TIMES_MAX;
}

/* Not one of our pages: whoever handled SIGBUS before us does so now. Handlers such as
   faulthandler's put back what was there before them and raise again, which may be us: the second
   time round is the end. */
static void pass_on(int number, siginfo_t *info, void *context)
{
    if (previous.sa_handler == SIG_IGN && info->si_code <= 0) {
        return; /* sent by kill(): a real fault can't be ignored */
    }
    if (previous.sa_handler == SIG_DFL || previous.sa_handler == SIG_IGN ||
        is_in_vain(info) || atomic_fetch_add(&passing_on, 1) > 0) {
        die_by_default(number);
        return;
    }
    if (previous.sa_flags & SA_SIGINFO) {
        previous.sa_sigaction(number, info, context);
    } else {
        previous.sa_handler(number);
    }
    atomic_fetch_sub(&passing_on, 1);
}

static void on_sigbus(int number, siginfo_t *info, void *context)
{
    const int saved_errno = errno;
    if (info->si_code > 0) { /* a fault: si_addr means something */
        const uintptr_t address = (uintptr_t)info->si_addr;
        struct guarded_region *region = region_of(address);
        if (region != NULL) {
            /* Before the zeros are there for another thread to read. */
            atomic_store(&region->damaged, true);
            /* One page, not the rest of the mapping: after a bad sector the rest is sound. */
            void *page = (void *)(address & ~(page_bytes - 1));
            const int flags = MAP_FIXED | MAP_ANONYMOUS | MAP_PRIVATE;
            if (mmap(page, page_bytes, PROT_READ, flags, -1, 0) != MAP_FAILED) {
                errno = saved_errno;
                return;
            }
        }
    }
    pass_on(number, info, context);
    errno = saved_errno;
}

/* ---- called from ordinary code -------------------------------------------------------------- */

int guard_install(void)
{
    struct sigaction current;
    if (sigaction(SIGBUS, NULL, &current) != 0) {
        return -1;
    }
    if ((current.sa_flags & SA_SIGINFO) && current.sa_sigaction == on_sigbus) {
        return 0;
    }
    page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    previous = current;
    struct sigaction action = {.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    sigemptyset(&action.sa_mask);
    action.sa_sigaction = on_sigbus;
    return sigaction(SIGBUS, &action, NULL);
}

static bool add_block(void)
{
    for (size_t b = 0; b < BLOCKS; b++) {
        if (atomic_load(&blocks[b]) == NULL) {
            struct guarded_region *block = calloc(REGIONS_PER_BLOCK, sizeof *block);
            if (block == NULL) {
                return false;
            }
            for (size_t r = 0; r < REGIONS_PER_BLOCK; r++) {
                block[r].next_free = r + 1 < REGIONS_PER_BLOCK ? &block[r + 1] : NULL;
            }
            first_free = block;
            atomic_store(&blocks[b], block);
            return true;
        }
    }
    return false;
}

struct guarded_region *guard_watch(const void *address, size_t size)
{
    if (first_free == NULL && !add_block()) {
        errno = ENOMEM;
        return NULL;
    }
    struct guarded_region *region = first_free;
    first_free = region->next_free;
    atomic_store(&region->damaged, false);
    atomic_store(&region->begin, (uintptr_t)address);
    atomic_store(&region->end, (uintptr_t)address + size);
    return region;
}

void guard_release(struct guarded_region *region)
{
    atomic_store(&region->end, 0);
    region->next_free = first_free;
    first_free = region;
}

bool guard_damaged(const struct guarded_region *region)
{
    return atomic_load(&region->damaged);
}
