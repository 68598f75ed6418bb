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

/* `moved` is as in the head of delta.h. */
static void put_sequence(struct delta_output *to, struct delta_copy copy, size_t expected)
{
    const int64_t moved = (int64_t)copy.from - (int64_t)(expected + copy.literals);
    put_number(to, copy.literals);
    put_number(to, moved < 0 ? 2 * (uint64_t)-moved - 1 : 2 * (uint64_t)moved);
    put_number(to, copy.copied);
}

size_t delta_sequences_bound(size_t size)
{
    return (size / SEED_BYTES + 1) * SEQUENCE_BYTES_MAX;
}

/* ---- encoding ------------------------------------------------------------------------------- */

static int seeds_bits(size_t bases_size)
{
    int bits = HASH_BITS_MIN;
    while (bits < HASH_BITS_MAX && (size_t)SEED_EVERY << bits < 2 * bases_size) {
        bits++;
    }
    return bits;
}

bool delta_work_begin(struct delta_work *work, size_t raw_max, size_t bases_max)
{
    *work = (struct delta_work){
        .positions = malloc(sizeof *work->positions << seeds_bits(bases_max)),
        .joined = malloc(bases_max + 1),
        .sequences = malloc(delta_sequences_bound(raw_max)),
        .literals = malloc(raw_max + 1),
        .copies = malloc((raw_max / SEED_BYTES + 1) * sizeof *work->copies),
    };
    if (work->positions != NULL && work->joined != NULL && work->sequences != NULL &&
        work->literals != NULL && work->copies != NULL) {
        return true;
    }
    delta_work_end(work);
    return false;
}

void delta_work_end(struct delta_work *work)
{
    free(work->positions);
    free(work->joined);
    free(work->sequences);
    free(work->literals);
    free(work->copies);
}

static struct delta_input joined(struct delta_work *work, const struct delta_bases *bases)
{
    if (bases->count == 1) {
        return bases->each[0];
    }
    uint8_t *to = work->joined;
    for (size_t i = 0; i < bases->count; i++) {
        if (bases->each[i].size > 0) {
            memcpy(to, bases->each[i].bytes, bases->each[i].size);
            to += bases->each[i].size;
        }
    }
    return (struct delta_input){work->joined, bases->size};
}

/* Positions of the base by what stands there: the first position of a seed in it wins. */
struct seeds {
    uint32_t *positions; /* one more than the position; 0 for none */
    int shift;
};

static inline size_t seed_slot(struct seeds seeds, uint64_t eight)
{
    return (size_t)((eight * UINT64_C(0x9E3779B97F4A7C15)) >> seeds.shift);
}

static struct seeds seeds_of(uint32_t *positions, struct delta_input base)
{
    const int bits = seeds_bits(base.size);
    const struct seeds seeds = {positions, 64 - bits};
    memset(positions, 0, sizeof *positions << bits);
    /* Every seed lies in the base: the last begins SEED_BYTES before its end, or further. */
    for (size_t at = base.size / SEED_EVERY * SEED_EVERY; at > 0;) {
        at -= SEED_EVERY;
        positions[seed_slot(seeds, eight_at(base.bytes + at))] = (uint32_t)at + 1;
    }
    return seeds;
}

/* Whether something at raw[at] is in the base: where it is expected, or else wherever it is found.
   It is as long as can be, in both directions, but begins no earlier than raw[begin]. */
static bool find_copy(struct seeds seeds, struct delta_input base, struct delta_input raw,
                      size_t begin, size_t at, size_t expected, struct delta_copy *found)
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
    *found = (struct delta_copy){(uint32_t)(at - before - begin), (uint32_t)(from - before),
                                 (uint32_t)(before + behind)};
    return as_expected || before + behind >= COPY_MIN;
}

/* The copies that `raw` is made of, and its sequences and literals; false as soon as it is known
   that there are more than `literals_max`. */
static bool find_copies(struct delta_work *work, struct delta_input base, struct delta_input raw,
                        size_t literals_max, struct delta_output *sequences,
                        struct delta_output *literals, size_t *count)
{
    const struct seeds seeds = seeds_of(work->positions, base);
    size_t begin = 0, at = 0, expected = 0;
    *count = 0;
    while (at + SEED_BYTES <= raw.size) {
        struct delta_copy found;
        if (!find_copy(seeds, base, raw, begin, at, expected, &found)) {
            at += 1 + ((at - begin) >> SKIP_SHIFT);
            continue;
        }
        put_sequence(sequences, found, expected);
        if (found.literals > literals_max - literals->size) {
            return false;
        }
        memcpy(literals->bytes + literals->size, raw.bytes + begin, found.literals);
        literals->size += found.literals;
        work->copies[(*count)++] = found;
        expected = (size_t)found.from + found.copied;
        begin = at = begin + found.literals + found.copied;
    }
    const size_t left = raw.size - begin;
    if (left > literals_max - literals->size) {
        return false;
    }
    if (left > 0) {
        memcpy(literals->bytes + literals->size, raw.bytes + begin, left);
        literals->size += left;
    }
    return true;
}

bool delta_encode(struct delta_work *work, const struct delta_bases *bases, struct delta_input raw,
                  struct delta_limits limits, struct delta_encoded *encoded)
{
    struct delta_output sequences = {work->sequences, 0}, literals = {work->literals, 0};
    size_t count, context = 0;
    *encoded = (struct delta_encoded){0};
    if (!find_copies(work, joined(work, bases), raw, least(limits.literals_max, raw.size),
                     &sequences, &literals, &count)) {
        return true;
    }
    const struct delta_input copies = {(const uint8_t *)work->copies, count * sizeof *work->copies};
    if (literals.size >= limits.context_from) {
        delta_context(copies, literals.size, bases, NULL, &context);
    }
    uint8_t *bytes = malloc(sequences.size + literals.size + context + 1);
    if (bytes == NULL) {
        return false;
    }
    memcpy(bytes, sequences.bytes, sequences.size);
    memcpy(bytes + sequences.size, literals.bytes, literals.size);
    if (context > 0) {
        size_t room = context;
        delta_context(copies, literals.size, bases, bytes + sequences.size + literals.size, &room);
    }
    *encoded = (struct delta_encoded){bytes, sequences.size, literals.size, context};
    return true;
}
