#include "anchors.h"

#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define ANCHORS_X86 1
#include <immintrin.h>
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

static inline uint32_t product_at(const uint8_t *at)
{
    return (word_at(at) + 5 * word_at(at + 4)) * ANCHOR_MULTIPLIER;
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

/* ---- portable C ------------------------------------------------------------------------------ */

/* Which positions of a row are anchors: position p is bit p. */
static uint64_t row_portable(const uint8_t *at)
{
    /* Position p is word p / 4 of phase p % 4: the words of a phase lie side by side, so that
       compilers vectorise this. */
    uint32_t x[ROW], far[ROW], largest = 0;
    for (int phase = 0; phase < 4; phase++) {
        memcpy(x + phase * WORDS_PER_PHASE, at + phase, ROW);
        memcpy(far + phase * WORDS_PER_PHASE, at + phase + 4, ROW);
    }
    for (int i = 0; i < ROW; i++) {
        x[i] = (little_endian(x[i]) + 5 * little_endian(far[i])) * ANCHOR_MULTIPLIER;
    }
    for (int i = 0; i < ROW; i++) {
        largest = x[i] > largest ? x[i] : largest;
    }
    uint64_t which = 0;
    for (int p = 0; largest >= ANCHOR_THRESHOLD && p < ROW; p++) {
        which |= (uint64_t)(x[p % 4 * WORDS_PER_PHASE + p / 4] >= ANCHOR_THRESHOLD) << p;
    }
    return which;
}

/* ---- AVX2: position p is lane p / 4 % 8 of the registers of phase p % 4 ---------------------- */

#ifdef ANCHORS_X86

#define TARGET_AVX2 __attribute__((target("avx2")))

TARGET_AVX2 static inline __m256i products_avx2(const uint8_t *at)
{
    __m256i near = _mm256_loadu_si256((const __m256i *)at);
    __m256i far = _mm256_loadu_si256((const __m256i *)(at + 4));
    __m256i five = _mm256_add_epi32(far, _mm256_slli_epi32(far, 2));
    return _mm256_mullo_epi32(_mm256_add_epi32(near, five),
                              _mm256_set1_epi32((int)ANCHOR_MULTIPLIER));
}

/* The threshold's low bits are 0: x reaches it if its high bits are all set. */
TARGET_AVX2 static inline __m256i reached_avx2(__m256i x)
{
    const __m256i threshold = _mm256_set1_epi32((int)ANCHOR_THRESHOLD);
    return _mm256_cmpeq_epi32(_mm256_and_si256(x, threshold), threshold);
}

TARGET_AVX2 static uint64_t row_avx2(const uint8_t *at)
{
    __m256i reached[8], any = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int n = 0; n < 8; n++) {
        reached[n] = reached_avx2(products_avx2(at + n / 2 + n % 2 * 32));
        any = _mm256_or_si256(any, reached[n]);
    }
    if (__builtin_expect(_mm256_testz_si256(any, any), 1)) {
        return 0;
    }
    uint64_t which = 0;
#pragma GCC unroll 8
    for (int n = 0; n < 8; n++) {
        unsigned lanes = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(reached[n]));
        for (; lanes; lanes &= lanes - 1) {
            which |= UINT64_C(1) << (n % 2 * 32 + 4 * __builtin_ctz(lanes) + n / 2);
        }
    }
    return which;
}

#endif /* ANCHORS_X86 */

/* ---- anchors --------------------------------------------------------------------------------- */

/* Written once, and compiled for each instruction set. */
static inline __attribute__((always_inline)) size_t
find(uint64_t (*row)(const uint8_t *), const uint8_t *data, size_t size, size_t *begin,
     struct anchor *found, size_t most)
{
    size_t count = 0, at = *begin;
    for (; at + ROW + ANCHOR_BYTES - 1 <= size; at += ROW) {
        uint64_t which = row(data + at);
        if (which && count + ROW > most) {
            *begin = at;
            return count;
        }
        for (; which; which &= which - 1) {
            const size_t position = at + (size_t)__builtin_ctzll(which);
            found[count++] = (struct anchor){hash_at(data + position), position};
        }
    }
    for (; at + ANCHOR_BYTES <= size && count < most; at++) { /* fewer than a row */
        if (product_at(data + at) >= ANCHOR_THRESHOLD) {
            found[count++] = (struct anchor){hash_at(data + at), at};
        }
    }
    *begin = at + ANCHOR_BYTES <= size ? at : size;
    return count;
}

static size_t find_portable(const uint8_t *data, size_t size, size_t *begin, struct anchor *found,
                            size_t most)
{
    return find(row_portable, data, size, begin, found, most);
}

static size_t (*chosen)(const uint8_t *, size_t, size_t *, struct anchor *, size_t) = find_portable;

#ifdef ANCHORS_X86
TARGET_AVX2 static size_t find_avx2(const uint8_t *data, size_t size, size_t *begin,
                                    struct anchor *found, size_t most)
{
    return find(row_avx2, data, size, begin, found, most);
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
