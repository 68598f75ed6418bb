/* The guard that keeps a mapped file, truncated by someone else, from killing the process with
   SIGBUS. Plain POSIX; it knows nothing of Python. */

#ifndef CASTORE_GUARD_H
#define CASTORE_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A range of addresses that the SIGBUS handler answers for. Its address stays valid for ever:
   regions are reused, never freed. */
struct guarded_region;

/* Makes sure that SIGBUS comes to the guard first. Cheap to repeat, and worth repeating: someone
   else (faulthandler) may have put a handler on top since, which then gets the signal until this is
   called again. 0, or -1 with errno. */
int guard_install(void);

/* Watch over [address, address + size) until it is released. NULL when memory is short.
   Callers serialise these two (Python's GIL does); the handler may look at any time. */
struct guarded_region *guard_watch(const void *address, size_t size);
void guard_release(struct guarded_region *region);

/* Whether some page of the region could not be read, and reads as zeros since. */
bool guard_damaged(const struct guarded_region *region);

#endif
