#include "delta.h"

#include <stdlib.h>
#include <string.h>

enum {
    SEED_BYTES = 8,        /* that are looked up */
    SEED_EVERY = 8,        /* positions of the base are indexed */
#ifndef COPY_MIN
    COPY_MIN = 32,         /* worth a copy from another place than the expected one */
#endif
    SEQUENCE_BYTES_MAX = 15,
    HASH_BITS_MIN = 10,
    HASH_BITS_MAX = 17,
    SKIP_SHIFT = 8,        /* in literals, 1 more position is skipped for 256 of them */
};

static inline uint64_t eight_at(const uint8_t *at)
{
    uint64_t eight;
    memcpy(&eight, at, sizeof eight);
    return eight;
}

/* 0 if the eight bytes are equal. */
static inline uint64_t differing(const uint8_t *a, const uint8_t *b)
{
    return eight_at(a) ^ eight_at(b);
}

/* How many of the first `most` bytes are equal. */
static inline size_t equal_bytes(const uint8_t *a, const uint8_t *b, size_t most)
{
    size_t i = 0;
    while (i + 32 <= most && (differing(a + i, b + i) | differing(a + i + 8, b + i + 8) |
                              differing(a + i + 16, b + i + 16) |
                              differing(a + i + 24, b + i + 24)) == 0) {
        i += 32;
    }
    while (i + 8 <= most && differing(a + i, b + i) == 0) {
        i += 8;
    }
    while (i < most && a[i] == b[i]) {
        i++;
    }
    return i;
}

static inline size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* ---- varints -------------------------------------------------------------------------------- */

static inline void put_number(struct delta_output *to, uint64_t number)
{
    for (; number >= 0x80; number >>= 7) {
        to->bytes[to->size++] = (uint8_t)(number | 0x80);
    }
    to->bytes[to->size++] = (uint8_t)number;
}

/* ---- sequences ------------------------------------------------------------------------------ */

struct sequence {
    size_t literals, from, copied; /* the copy is of [from, from + copied) of the base */
};

static void put_sequence(struct delta_output *to, struct sequence sequence, size_t expected)
{
    const int64_t moved = (int64_t)sequence.from - (int64_t)(expected + sequence.literals);
    put_number(to, sequence.literals);
    put_number(to, moved < 0 ? 2 * (uint64_t)-moved - 1 : 2 * (uint64_t)moved);
    put_number(to, sequence.copied);
}

/* ---- encoding ------------------------------------------------------------------------------- */

/* Positions of the base by what stands there: the first position of a seed in it wins. */
struct seeds {
    uint32_t *positions; /* one more than the position; 0 for none */
    int shift;
};

static inline size_t seed_slot(struct seeds seeds, uint64_t eight)
{
    return (size_t)((eight * UINT64_C(0x9E3779B97F4A7C15)) >> seeds.shift);
}

static bool index_seeds(struct seeds *seeds, struct delta_input base)
{
    int bits = HASH_BITS_MIN;
    while (bits < HASH_BITS_MAX && (size_t)SEED_EVERY << bits < 2 * base.size) {
        bits++;
    }
    const struct seeds made = {calloc((size_t)1 << bits, sizeof *made.positions), 64 - bits};
    if (made.positions == NULL) {
        return false;
    }
    /* Every seed lies in the base: the last begins SEED_BYTES before its end, or further. */
    for (size_t at = base.size / SEED_EVERY * SEED_EVERY; at > 0;) {
        at -= SEED_EVERY;
        made.positions[seed_slot(made, eight_at(base.bytes + at))] = (uint32_t)at + 1;
    }
    *seeds = made;
    return true;
}

/* Whether something at raw[at] is in the base: where it is expected, or else wherever it is found.
   It is as long as can be, in both directions, but begins no earlier than raw[begin]. */
static bool find_copy(struct seeds seeds, struct delta_input base, struct delta_input raw,
                      size_t begin, size_t at, size_t expected, struct sequence *found)
{
    const uint64_t eight = eight_at(raw.bytes + at);
    size_t from = expected + (at - begin);
    const bool as_expected = from + 8 <= base.size && eight_at(base.bytes + from) == eight;
    if (!as_expected) {
        const uint32_t position = seeds.positions[seed_slot(seeds, eight)];
        if (position == 0 || eight_at(base.bytes + position - 1) != eight) {
            return false;
        }
        from = position - 1;
    }
    const size_t most = least(raw.size - at, base.size - from);
    const size_t behind = 8 + equal_bytes(raw.bytes + at + 8, base.bytes + from + 8, most - 8);
    size_t before = 0;
    while (at - before > begin && from > before &&
           raw.bytes[at - before - 1] == base.bytes[from - before - 1]) {
        before++;
    }
    *found = (struct sequence){at - before - begin, from - before, before + behind};
    return as_expected || before + behind >= COPY_MIN;
}

size_t delta_sequences_bound(size_t size)
{
    return (size / SEED_BYTES + 1) * SEQUENCE_BYTES_MAX;
}

bool delta_encode(struct delta_input base, struct delta_input raw, struct delta_output *sequences,
                  struct delta_output *literals)
{
    struct seeds seeds;
    if (!index_seeds(&seeds, base)) {
        return false;
    }
    size_t begin = 0, at = 0, expected = 0;
    while (at + SEED_BYTES <= raw.size) {
        struct sequence found;
        if (!find_copy(seeds, base, raw, begin, at, expected, &found)) {
            at += 1 + ((at - begin) >> SKIP_SHIFT);
            continue;
        }
        put_sequence(sequences, found, expected);
        memcpy(literals->bytes + literals->size, raw.bytes + begin, found.literals);
        literals->size += found.literals;
        expected = found.from + found.copied;
        begin = at = begin + found.literals + found.copied;
    }
    memcpy(literals->bytes + literals->size, raw.bytes + begin, raw.size - begin);
    literals->size += raw.size - begin;
    free(seeds.positions);
    return true;
}
