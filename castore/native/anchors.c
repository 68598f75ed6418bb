#include "anchors.h"

#include <stdbool.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define ANCHORS_X86 1
#endif

#define ANCHOR_MULTIPLIER 0x9E3779B1u
#define ANCHOR_THRESHOLD 0xFF800000u /* one position in 512 */
#define MIX_1 UINT64_C(0x9E3779B97F4A7C15)
#define MIX_2 UINT64_C(0xC2B2AE3D27D4EB4F)

enum {
    ROW = 64, /* positions that are looked at together */
    WORDS_PER_PHASE = ROW / 4,
};

static inline uint32_t little_endian(uint32_t word)
{
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return __builtin_bswap32(word);
#else
    return word;
#endif
}

static inline uint32_t word_at(const uint8_t *at)
{
    uint32_t word;
    memcpy(&word, at, sizeof word);
    return little_endian(word);
}

static inline uint64_t hash_at(const uint8_t *at)
{
    uint64_t hash = 0;
    for (int i = 0; i < ANCHOR_BYTES; i += 8) {
        uint64_t word = word_at(at + i) | (uint64_t)word_at(at + i + 4) << 32;
        hash = (hash ^ word) * MIX_1;
        hash ^= hash >> 29;
    }
    return hash * MIX_2 >> 4; /* 60 bits: two digits of a Python int */
}

/* Position p of a row is word p / 4 of phase p % 4: the words of a phase lie side by side. */
static inline size_t place_in_row(size_t position)
{
    return position % 4 * WORDS_PER_PHASE + position / 4;
}

/* Written once, and compiled for each instruction set: compilers vectorise the loops over x. */
static inline __attribute__((always_inline)) size_t
find(const uint8_t *data, size_t size, size_t *begin, struct anchor *found, size_t most)
{
    size_t count = 0, at = *begin;
    for (; at + ROW + ANCHOR_BYTES - 1 <= size; at += ROW) {
        uint32_t x[ROW], next[ROW], largest = 0;
        for (int phase = 0; phase < 4; phase++) {
            memcpy(x + phase * WORDS_PER_PHASE, data + at + phase, ROW);
            memcpy(next + phase * WORDS_PER_PHASE, data + at + phase + 4, ROW);
        }
        for (int i = 0; i < ROW; i++) {
            x[i] = (little_endian(x[i]) + 5 * little_endian(next[i])) * ANCHOR_MULTIPLIER;
        }
        for (int i = 0; i < ROW; i++) {
            largest = x[i] > largest ? x[i] : largest;
        }
        if (__builtin_expect(largest >= ANCHOR_THRESHOLD, 0)) {
            if (count + ROW > most) {
                *begin = at;
                return count;
            }
            for (size_t i = 0; i < ROW; i++) {
                if (x[place_in_row(i)] >= ANCHOR_THRESHOLD) {
                    found[count++] = (struct anchor){hash_at(data + at + i), at + i};
                }
            }
        }
    }
    for (; at + ANCHOR_BYTES <= size; at++) { /* fewer than a row */
        if (count == most) {
            break;
        }
        if ((word_at(data + at) + 5 * word_at(data + at + 4)) * ANCHOR_MULTIPLIER >=
            ANCHOR_THRESHOLD) {
            found[count++] = (struct anchor){hash_at(data + at), at};
        }
    }
    *begin = at + ANCHOR_BYTES <= size ? at : size;
    return count;
}

static size_t find_portable(const uint8_t *data, size_t size, size_t *begin, struct anchor *found,
                            size_t most)
{
    return find(data, size, begin, found, most);
}

static size_t (*chosen)(const uint8_t *, size_t, size_t *, struct anchor *, size_t) = find_portable;

#ifdef ANCHORS_X86
__attribute__((target("avx2"))) static size_t find_avx2(const uint8_t *data, size_t size,
                                                        size_t *begin, struct anchor *found,
                                                        size_t most)
{
    return find(data, size, begin, found, most);
}
#endif

void anchors_prepare(void)
{
#ifdef ANCHORS_X86
    if (__builtin_cpu_supports("avx2")) {
        chosen = find_avx2;
    }
#endif
}

size_t find_anchors(const uint8_t *data, size_t size, size_t *begin, struct anchor *found,
                    size_t most)
{
    return chosen(data, size, begin, found, most);
}
