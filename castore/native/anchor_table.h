/* Which of some bases, each in a slot, have the anchors that a chunk has. Pure C; it knows nothing
   of Python. castore/stream/anchor_table.py has the reference. */

#ifndef CASTORE_ANCHOR_TABLE_H
#define CASTORE_ANCHOR_TABLE_H

#include "anchors.h"

#include <stdbool.h>

enum {
    RANKED_MAX = 4,
    TABLE_SLOTS_MAX = 1 << 16,
};

/* The anchors of some bytes that have different hashes, in the order of where each is first, with
   where it is last. `index` leads from hashes to them: see anchor_table.c. */
struct anchor_set {
    struct anchor *anchors;
    uint32_t *index; /* one more than a place in `anchors`; 0 for none */
    size_t count;
    int bits; /* of the index's size */
};

/* False if memory ran out. Bytes: at most 2**31. Touches no table. */
bool anchor_set_fill(struct anchor_set *set, const uint8_t *data, size_t size);
void anchor_set_free(struct anchor_set *set);

struct owner {
    uint64_t hash;
    uint32_t slot; /* one more than it; 0 where there is none */
};

struct anchor_table {
    struct anchor_set *bases; /* of each slot, without an index: only what is sought has one */
    size_t slots;
    struct owner *owners; /* of each hash, the slot that it was put in last: open addressing */
    size_t owned;
    int bits; /* of how many owners there is room for */
};

bool anchor_table_make(struct anchor_table *table, size_t slots);
void anchor_table_free(struct anchor_table *table);

/* They are from now on those of the slot. False if memory ran out, and then it has none. */
bool anchor_table_put(struct anchor_table *table, size_t slot, const struct anchor_set *set);
void anchor_table_forget(struct anchor_table *table, size_t slot);

struct shares {
    double least;      /* of all anchors, that a base must add to those before it */
    double least_left; /* of what those before it leave, for all but the first */
    double least_all;  /* of all anchors, that all bases together must have */
};

struct ranking {
    size_t count;
    size_t slots[RANKED_MAX];
    size_t gains[RANKED_MAX]; /* how many anchors each has that those before it have not */
    int64_t shift; /* the middle one of where the first has an anchor less where it is sought */
};

/* The bases that have most of what is sought, each for what those before it have not. False if
   memory ran out. */
bool anchor_table_rank(const struct anchor_table *table, const struct anchor_set *sought,
                       struct shares shares, struct ranking *ranking);

/* How many of what is sought some of these slots have (the first that does counts) about as far on
   as the one found before it: of the same text, that is, and not of words that are common. False
   if memory ran out. */
bool anchor_table_in_runs(const struct anchor_table *table, const struct anchor_set *sought,
                          const size_t *slots, size_t count, size_t *in_runs);

#endif
