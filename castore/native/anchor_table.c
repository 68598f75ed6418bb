#include "anchor_table.h"

#include <stdlib.h>
#include <string.h>

enum {
    HASH_BITS = 60,
    BITS_MIN = 7,
    FOUND_MAX = 512,            /* anchors at a time */
    RUN_BYTES = 256,             /* of which the next anchor of a run is no further on or less */
    CONSIDERED = 2 * RANKED_MAX, /* bases, those that own most of what is sought */
};

#define NOT_FOUND (INT64_MAX / 2) /* further on than anything is */

/* Hashes are as good as random: their high bits say where to look first. */
static inline size_t home_of(uint64_t hash, int bits)
{
    return (size_t)(hash >> (HASH_BITS - bits));
}

static inline size_t after(size_t at, int bits)
{
    return (at + 1) & (((size_t)1 << bits) - 1);
}

/* ---- sets ----------------------------------------------------------------------------------- */

/* Where the index has the hash, or would have it. */
static inline size_t place_in_index(const struct anchor_set *set, uint64_t hash)
{
    size_t at = home_of(hash, set->bits);
    while (set->index[at] != 0 && set->anchors[set->index[at] - 1].hash != hash) {
        at = after(at, set->bits);
    }
    return at;
}

/* At least as much room again, or some at first: at most half of it is taken at any time. */
static bool grow_set(struct anchor_set *set)
{
    const int bits = set->bits ? set->bits + 1 : BITS_MIN;
    struct anchor *anchors = realloc(set->anchors, sizeof *anchors << (bits - 1));
    if (anchors == NULL) {
        return false;
    }
    set->anchors = anchors;
    uint32_t *index = calloc((size_t)1 << bits, sizeof *index);
    if (index == NULL) {
        return false;
    }
    free(set->index);
    set->index = index;
    set->bits = bits;
    for (size_t i = 0; i < set->count; i++) {
        index[place_in_index(set, anchors[i].hash)] = (uint32_t)i + 1;
    }
    return true;
}

bool anchor_set_fill(struct anchor_set *set, const uint8_t *data, size_t size)
{
    *set = (struct anchor_set){NULL, NULL, 0, 0};
    struct anchor found[FOUND_MAX];
    size_t begin = 0;
    while (begin < size) {
        const size_t count = find_anchors(data, size, &begin, found, FOUND_MAX);
        for (size_t i = 0; i < count; i++) {
            if ((set->bits == 0 || set->count == (size_t)1 << (set->bits - 1)) && !grow_set(set)) {
                anchor_set_free(set);
                return false;
            }
            const size_t at = place_in_index(set, found[i].hash);
            if (set->index[at] == 0) {
                set->anchors[set->count++] = found[i];
                set->index[at] = (uint32_t)set->count;
            } else {
                set->anchors[set->index[at] - 1].position = found[i].position;
            }
        }
    }
    return true;
}

void anchor_set_free(struct anchor_set *set)
{
    free(set->anchors);
    free(set->index);
    *set = (struct anchor_set){NULL, NULL, 0, 0};
}

/* Where in `anchors` the hash is; `count` if it is not. */
static inline size_t find_in_set(const struct anchor_set *set, uint64_t hash)
{
    const uint32_t found = set->count ? set->index[place_in_index(set, hash)] : 0;
    return found ? found - 1 : set->count;
}

/* ---- owners --------------------------------------------------------------------------------- */

static inline size_t place_of_owner(const struct anchor_table *table, uint64_t hash)
{
    size_t at = home_of(hash, table->bits);
    while (table->owners[at].slot != 0 && table->owners[at].hash != hash) {
        at = after(at, table->bits);
    }
    return at;
}

static bool grow_owners(struct anchor_table *table)
{
    const struct anchor_table old = *table;
    struct owner *owners = calloc((size_t)2 << old.bits, sizeof *owners);
    if (owners == NULL) {
        return false;
    }
    table->owners = owners;
    table->bits = old.bits + 1;
    for (size_t at = 0; at < (size_t)1 << old.bits; at++) {
        if (old.owners[at].slot != 0) {
            owners[place_of_owner(table, old.owners[at].hash)] = old.owners[at];
        }
    }
    free(old.owners);
    return true;
}

/* Those behind it that could not lie where they belong move up. */
static void remove_owner(struct anchor_table *table, size_t at)
{
    const size_t mask = ((size_t)1 << table->bits) - 1;
    for (size_t next = after(at, table->bits); table->owners[next].slot != 0;
         next = after(next, table->bits)) {
        const size_t home = home_of(table->owners[next].hash, table->bits);
        if (((next - home) & mask) >= ((next - at) & mask)) {
            table->owners[at] = table->owners[next];
            at = next;
        }
    }
    table->owners[at].slot = 0;
    table->owned--;
}

/* ---- the table ------------------------------------------------------------------------------ */

bool anchor_table_make(struct anchor_table *table, size_t slots)
{
    *table = (struct anchor_table){NULL, slots, NULL, 0, BITS_MIN};
    table->bases = calloc(slots, sizeof *table->bases);
    table->owners = calloc((size_t)1 << BITS_MIN, sizeof *table->owners);
    return table->bases != NULL && table->owners != NULL;
}

void anchor_table_free(struct anchor_table *table)
{
    for (size_t slot = 0; table->bases != NULL && slot < table->slots; slot++) {
        anchor_set_free(&table->bases[slot]);
    }
    free(table->bases);
    free(table->owners);
}

void anchor_table_forget(struct anchor_table *table, size_t slot)
{
    struct anchor_set *set = &table->bases[slot];
    for (size_t i = 0; i < set->count; i++) {
        const size_t at = place_of_owner(table, set->anchors[i].hash);
        if (table->owners[at].slot == slot + 1) {
            remove_owner(table, at);
        }
    }
    anchor_set_free(set);
}

bool anchor_table_put(struct anchor_table *table, size_t slot, const struct anchor_set *set)
{
    anchor_table_forget(table, slot);
    while (2 * (table->owned + set->count) > (size_t)1 << table->bits) {
        if (!grow_owners(table)) {
            return false;
        }
    }
    struct anchor_set *base = &table->bases[slot];
    base->anchors = malloc(set->count * sizeof *base->anchors + 1);
    if (base->anchors == NULL) {
        return false;
    }
    base->count = set->count;
    for (size_t i = 0; i < set->count; i++) {
        base->anchors[i] = set->anchors[i];
        const size_t at = place_of_owner(table, set->anchors[i].hash);
        table->owned += table->owners[at].slot == 0;
        table->owners[at] = (struct owner){set->anchors[i].hash, (uint32_t)slot + 1};
    }
    return true;
}

/* ---- ranking -------------------------------------------------------------------------------- */

/* The slots that own most of what is sought, at least `least` each, the first that was met first;
   how many: none where all slots together own less than `least_all`. `votes` has a zero for each
   slot, and one more; `owners` has room for one of each that is sought. */
static size_t consider(const struct anchor_table *table, const struct anchor_set *sought,
                       size_t least, size_t least_all, uint32_t *votes, uint32_t *owners,
                       size_t slots[CONSIDERED])
{
    size_t owned = 0;
    for (size_t i = 0; i < sought->count; i++) {
        owners[i] = table->owners[place_of_owner(table, sought->anchors[i].hash)].slot;
        owned += owners[i] != 0;
        votes[owners[i] ? owners[i] - 1 : table->slots]++;
    }
    if (owned < least_all) {
        return 0;
    }
    size_t count = 0;
    for (size_t i = 0; i < sought->count; i++) {
        const uint32_t slot = owners[i];
        const size_t mine = slot ? votes[slot - 1] : 0;
        if (mine < least || mine == 0) {
            continue;
        }
        size_t at = count;
        bool met = false;
        for (size_t j = 0; j < count; j++) {
            met = met || slots[j] == slot - 1;
            at = at == count && votes[slots[j]] < mine ? j : at;
        }
        if (met || at == CONSIDERED) {
            continue;
        }
        count = count < CONSIDERED ? count + 1 : count;
        memmove(slots + at + 1, slots + at, (count - 1 - at) * sizeof *slots);
        slots[at] = slot - 1;
    }
    return count;
}

static int compare(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* `shifts` has room for one of each that is sought. */
static int64_t middle_shift(const struct anchor_set *base, const struct anchor_set *sought,
                            int64_t *shifts)
{
    size_t count = 0;
    for (size_t i = 0; i < base->count; i++) {
        const size_t found = find_in_set(sought, base->anchors[i].hash);
        if (found < sought->count) {
            shifts[count++] = (int64_t)base->anchors[i].position -
                              (int64_t)sought->anchors[found].position;
        }
    }
    qsort(shifts, count, sizeof *shifts, compare);
    return count ? shifts[count / 2] : 0;
}

/* How many of what is sought, and left, the base has; with `take` it is not left after. */
static size_t gain_of(const struct anchor_set *base, const struct anchor_set *sought, uint8_t *left,
                      bool take)
{
    size_t gain = 0;
    for (size_t i = 0; i < base->count; i++) {
        const size_t found = find_in_set(sought, base->anchors[i].hash);
        if (found < sought->count && left[found]) {
            gain++;
            left[found] = !take;
        }
    }
    return gain;
}

static size_t at_least(double share, size_t count)
{
    const double product = share * (double)count;
    const size_t floor = (size_t)product;
    return floor + ((double)floor < product);
}

static void choose(const struct anchor_table *table, const struct anchor_set *sought,
                   struct shares shares, size_t *slots, size_t considered, uint8_t *left,
                   struct ranking *ranking)
{
    size_t remaining = sought->count;
    while (considered > 0 && ranking->count < RANKED_MAX) {
        size_t best = 0, most = 0;
        for (size_t i = 0; i < considered; i++) {
            const size_t gain = gain_of(&table->bases[slots[i]], sought, left, false);
            if (gain > most) {
                best = i;
                most = gain;
            }
        }
        const double least_left = ranking->count ? shares.least_left * (double)remaining : 0;
        if (most == 0 || most < at_least(shares.least, sought->count) ||
            (double)most < least_left) {
            break;
        }
        gain_of(&table->bases[slots[best]], sought, left, true);
        remaining -= most;
        ranking->slots[ranking->count] = slots[best];
        ranking->gains[ranking->count++] = most;
        memmove(slots + best, slots + best + 1, (--considered - best) * sizeof *slots);
    }
    if ((double)(sought->count - remaining) < shares.least_all * (double)sought->count) {
        ranking->count = 0;
    }
}

bool anchor_table_rank(const struct anchor_table *table, const struct anchor_set *sought,
                       struct shares shares, struct ranking *ranking)
{
    *ranking = (struct ranking){0};
    if (sought->count == 0 || table->owned == 0) {
        return true;
    }
    uint32_t *votes = calloc(table->slots + 1, sizeof *votes);
    uint8_t *left = malloc(sought->count);
    int64_t *shifts = malloc(sought->count * sizeof *shifts);
    uint32_t *owners = malloc(sought->count * sizeof *owners);
    const bool done = votes != NULL && left != NULL && shifts != NULL && owners != NULL;
    if (done) {
        size_t slots[CONSIDERED];
        const size_t considered =
            consider(table, sought, at_least(shares.least, sought->count),
                     at_least(shares.least_all, sought->count), votes, owners, slots);
        memset(left, 1, sought->count);
        choose(table, sought, shares, slots, considered, left, ranking);
        if (ranking->count > 0) {
            ranking->shift = middle_shift(&table->bases[ranking->slots[0]], sought, shifts);
        }
    }
    free(votes);
    free(left);
    free(shifts);
    free(owners);
    return done;
}

bool anchor_table_in_runs(const struct anchor_table *table, const struct anchor_set *sought,
                          const size_t *slots, size_t count, size_t *in_runs)
{
    *in_runs = 0;
    if (sought->count == 0) {
        return true;
    }
    int64_t *shifts = malloc(sought->count * sizeof *shifts);
    if (shifts == NULL) {
        return false;
    }
    for (size_t i = 0; i < sought->count; i++) {
        shifts[i] = NOT_FOUND;
    }
    for (size_t j = count; j > 0; j--) { /* what the first of them has is written last */
        const struct anchor_set *base = &table->bases[slots[j - 1]];
        for (size_t i = 0; i < base->count; i++) {
            const size_t found = find_in_set(sought, base->anchors[i].hash);
            if (found < sought->count) {
                shifts[found] = (int64_t)base->anchors[i].position -
                                (int64_t)sought->anchors[found].position;
            }
        }
    }
    int64_t last = NOT_FOUND;
    for (size_t i = 0; i < sought->count; i++) {
        if (shifts[i] != NOT_FOUND) {
            *in_runs += shifts[i] - last < RUN_BYTES && last - shifts[i] < RUN_BYTES;
            last = shifts[i];
        }
    }
    free(shifts);
    return true;
}
