#include "kernel.h"

#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define GEAR_X86 1
#include <immintrin.h>
#endif

/* Part of the format. Among the pairs for which no run of one byte comes near a threshold, these
   two gave the steadiest mean chunk (within a factor of 1.2 of 75 KiB on every kind of data tried)
   and the fewest forced cuts: bench/choose_multipliers.py has the evidence. */
#ifndef GEAR_K0
#define GEAR_K0 0x6af1
#define GEAR_K1 0x50ab
#endif

/* One source, several instruction sets: the tests compile it with TARGET(isa) empty, against an
   emulation of the intrinsics. */
#ifndef TARGET
#define TARGET(isa) __attribute__((target(isa)))
#endif

enum {
    WARM_UP_ROWS = 10,     /* with its own row, 11: a full window */
    PREFETCH_BYTES = 3072, /* from DRAM, a fifth faster than without */
    LANES_PER_PHASE = GEAR_ROW / 4,
};

/* X of one row of 64 positions. Position p is lane p / 4 of phase p % 4: the lanes of a phase lie
   side by side, as do the 32-bit words that they read; phase after phase. */
typedef uint32_t gear_row[GEAR_ROW];

static inline size_t place_in_row(size_t position)
{
    return position % 4 * LANES_PER_PHASE + position / 4;
}

static inline uint32_t largest_in_row(gear_row row)
{
    uint32_t largest = 0;
    for (int n = 0; n < GEAR_ROW; n++) {
        largest = row[n] > largest ? row[n] : largest;
    }
    return largest;
}

/* The first position with X >= threshold: there is one. */
static inline size_t first_in_row(gear_row row, uint32_t threshold)
{
    size_t position = 0;
    while (row[place_in_row(position)] < threshold) {
        position++;
    }
    return position;
}

/* The last position with X == value: there is one. */
static inline size_t last_in_row(gear_row row, uint32_t value)
{
    size_t position = GEAR_ROW - 1;
    while (row[place_in_row(position)] != value) {
        position--;
    }
    return position;
}

/* ---- portable C: rows as plain arrays, which compilers vectorise ---------------------------- */

static inline uint32_t little_endian(uint32_t word)
{
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return __builtin_bswap32(word);
#else
    return word;
#endif
}

static inline void step_portable(gear_row x, const uint8_t *at)
{
    const int32_t k0 = (int16_t)GEAR_K0, k1 = (int16_t)GEAR_K1;
    gear_row near, far;
    for (int phase = 0; phase < 4; phase++) {
        memcpy(near + phase * LANES_PER_PHASE, at + phase - 4, GEAR_ROW);
        memcpy(far + phase * LANES_PER_PHASE, at + phase - 9, GEAR_ROW);
    }
    for (int n = 0; n < GEAR_ROW; n++) {
        uint32_t d = little_endian(near[n]) + little_endian(far[n]);
        uint32_t low = (uint32_t)((int16_t)d * k0);
        uint32_t high = (uint32_t)((int16_t)(d >> 16) * k1);
        x[n] = (x[n] << 3) ^ (low + high);
    }
}

static inline void warm_up_portable(gear_row x, const uint8_t *at)
{
    memset(x, 0, sizeof(gear_row));
    for (int row = -WARM_UP_ROWS; row < 0; row++) {
        step_portable(x, at + row * GEAR_ROW);
    }
}

static size_t first_at_least_portable(const uint8_t *data, size_t begin, size_t end,
                                      uint32_t threshold)
{
    gear_row x;
    warm_up_portable(x, data + begin);
    for (size_t i = begin; i < end; i += GEAR_ROW) {
        step_portable(x, data + i);
        if (largest_in_row(x) >= threshold) {
            return i + first_in_row(x, threshold);
        }
    }
    return end;
}

static size_t last_largest_portable(const uint8_t *data, size_t begin, size_t end)
{
    gear_row x;
    size_t found = end;
    uint32_t peak = 1;
    warm_up_portable(x, data + begin);
    for (size_t i = begin; i < end; i += GEAR_ROW) {
        step_portable(x, data + i);
        uint32_t largest = largest_in_row(x);
        if (largest >= peak) {
            peak = largest;
            found = i + last_in_row(x, peak);
        }
    }
    return found;
}

#ifdef GEAR_X86

/* ---- AVX2: a phase is two registers of 8 lanes ---------------------------------------------- */

#define AVX2 TARGET("avx2") static inline __attribute__((always_inline))

AVX2 __m256i phi_avx2(const uint8_t *at, __m256i k)
{
    __m256i near = _mm256_loadu_si256((const __m256i *)(at - 4));
    __m256i far = _mm256_loadu_si256((const __m256i *)(at - 9));
    return _mm256_madd_epi16(_mm256_add_epi32(near, far), k);
}

AVX2 void step_avx2(__m256i x[8], const uint8_t *at, __m256i k)
{
#pragma GCC unroll 8
    for (int n = 0; n < 8; n++) {
        __m256i phi = phi_avx2(at + n / 2 + n % 2 * 32, k);
        x[n] = _mm256_xor_si256(_mm256_slli_epi32(x[n], 3), phi);
    }
}

AVX2 void warm_up_avx2(__m256i x[8], const uint8_t *at, __m256i k)
{
#pragma GCC unroll 8
    for (int n = 0; n < 8; n++) {
        x[n] = _mm256_setzero_si256();
    }
    for (int row = -WARM_UP_ROWS; row < 0; row++) {
        step_avx2(x, at + row * GEAR_ROW, k);
    }
}

/* Register by register: a memcpy would keep x in memory all along. */
AVX2 void store_avx2(gear_row row, const __m256i x[8])
{
#pragma GCC unroll 8
    for (int n = 0; n < 8; n++) {
        _mm256_storeu_si256((__m256i *)row + n, x[n]);
    }
}

AVX2 bool any_avx2(const __m256i x[8], __m256i threshold)
{
    __m256i a = _mm256_max_epu32(_mm256_max_epu32(x[0], x[1]), _mm256_max_epu32(x[2], x[3]));
    __m256i b = _mm256_max_epu32(_mm256_max_epu32(x[4], x[5]), _mm256_max_epu32(x[6], x[7]));
    __m256i largest = _mm256_max_epu32(a, b);
    __m256i reached = _mm256_cmpeq_epi32(_mm256_max_epu32(largest, threshold), largest);
    return _mm256_movemask_epi8(reached) != 0;
}

TARGET("avx2")
static size_t first_at_least_avx2(const uint8_t *data, size_t begin, size_t end,
                                  uint32_t threshold)
{
    const __m256i k = _mm256_set1_epi32((int)((uint32_t)GEAR_K1 << 16 | GEAR_K0));
    const __m256i thresholds = _mm256_set1_epi32((int)threshold);
    __m256i x[8];
    warm_up_avx2(x, data + begin, k);
    for (size_t i = begin; i < end; i += GEAR_ROW) {
        __builtin_prefetch(data + i + PREFETCH_BYTES);
        step_avx2(x, data + i, k);
        if (__builtin_expect(any_avx2(x, thresholds), 0)) {
            gear_row row;
            store_avx2(row, x);
            return i + first_in_row(row, threshold);
        }
    }
    return end;
}

TARGET("avx2")
static size_t last_largest_avx2(const uint8_t *data, size_t begin, size_t end)
{
    const __m256i k = _mm256_set1_epi32((int)((uint32_t)GEAR_K1 << 16 | GEAR_K0));
    __m256i x[8], peaks = _mm256_set1_epi32(1);
    gear_row row = {0}; /* the last that reached the peak */
    uint32_t peak = 0;
    size_t found = end;
    warm_up_avx2(x, data + begin, k);
    for (size_t i = begin; i < end; i += GEAR_ROW) {
        step_avx2(x, data + i, k);
        if (any_avx2(x, peaks)) {
            store_avx2(row, x);
            peak = largest_in_row(row);
            peaks = _mm256_set1_epi32((int)peak);
            found = i;
        }
    }
    return found < end ? found + last_in_row(row, peak) : end;
}

/* ---- AVX-512BW: a phase is one register of 16 lanes ----------------------------------------- */

#define AVX512 TARGET("avx512f,avx512bw") static inline __attribute__((always_inline))

AVX512 void step_avx512(__m512i x[4], const uint8_t *at, __m512i k)
{
#pragma GCC unroll 4
    for (int phase = 0; phase < 4; phase++) {
        __m512i near = _mm512_loadu_si512(at + phase - 4);
        __m512i far = _mm512_loadu_si512(at + phase - 9);
        __m512i phi = _mm512_madd_epi16(_mm512_add_epi32(near, far), k);
        x[phase] = _mm512_xor_si512(_mm512_slli_epi32(x[phase], 3), phi);
    }
}

AVX512 void warm_up_avx512(__m512i x[4], const uint8_t *at, __m512i k)
{
#pragma GCC unroll 4
    for (int phase = 0; phase < 4; phase++) {
        x[phase] = _mm512_setzero_si512();
    }
    for (int row = -WARM_UP_ROWS; row < 0; row++) {
        step_avx512(x, at + row * GEAR_ROW, k);
    }
}

AVX512 void store_avx512(gear_row row, const __m512i x[4])
{
#pragma GCC unroll 4
    for (int phase = 0; phase < 4; phase++) {
        _mm512_storeu_si512(row + phase * LANES_PER_PHASE, x[phase]);
    }
}

AVX512 bool any_avx512(const __m512i x[4], __m512i threshold)
{
    __m512i largest = _mm512_max_epu32(_mm512_max_epu32(x[0], x[1]),
                                       _mm512_max_epu32(x[2], x[3]));
    return _mm512_cmpge_epu32_mask(largest, threshold) != 0;
}

TARGET("avx512f,avx512bw")
static size_t first_at_least_avx512bw(const uint8_t *data, size_t begin, size_t end,
                                      uint32_t threshold)
{
    const __m512i k = _mm512_set1_epi32((int)((uint32_t)GEAR_K1 << 16 | GEAR_K0));
    const __m512i thresholds = _mm512_set1_epi32((int)threshold);
    __m512i x[4];
    warm_up_avx512(x, data + begin, k);
    for (size_t i = begin; i < end; i += GEAR_ROW) {
        __builtin_prefetch(data + i + PREFETCH_BYTES);
        step_avx512(x, data + i, k);
        if (__builtin_expect(any_avx512(x, thresholds), 0)) {
            gear_row row;
            store_avx512(row, x);
            return i + first_in_row(row, threshold);
        }
    }
    return end;
}

TARGET("avx512f,avx512bw")
static size_t last_largest_avx512bw(const uint8_t *data, size_t begin, size_t end)
{
    const __m512i k = _mm512_set1_epi32((int)((uint32_t)GEAR_K1 << 16 | GEAR_K0));
    __m512i x[4], peaks = _mm512_set1_epi32(1);
    gear_row row = {0}; /* the last that reached the peak */
    uint32_t peak = 0;
    size_t found = end;
    warm_up_avx512(x, data + begin, k);
    for (size_t i = begin; i < end; i += GEAR_ROW) {
        step_avx512(x, data + i, k);
        if (any_avx512(x, peaks)) {
            store_avx512(row, x);
            peak = largest_in_row(row);
            peaks = _mm512_set1_epi32((int)peak);
            found = i;
        }
    }
    return found < end ? found + last_in_row(row, peak) : end;
}

#endif /* GEAR_X86 */

/* ---- which variants there are --------------------------------------------------------------- */

const struct gear_variant gear_variants[] = {
#ifdef GEAR_X86
    {"avx512bw", first_at_least_avx512bw, last_largest_avx512bw},
    {"avx2", first_at_least_avx2, last_largest_avx2},
#endif
    {"portable", first_at_least_portable, last_largest_portable},
};
const size_t gear_variant_count = sizeof gear_variants / sizeof *gear_variants;

bool gear_variant_runs(const struct gear_variant *variant)
{
#ifdef GEAR_X86
    /* __builtin_cpu_supports asks XGETBV too: the operating system must save the registers. */
    if (variant->first_at_least == first_at_least_avx512bw) {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    }
    if (variant->first_at_least == first_at_least_avx2) {
        return __builtin_cpu_supports("avx2");
    }
#endif
    return variant->first_at_least == first_at_least_portable;
}

/* ---- where to cut --------------------------------------------------------------------------- */

/* The scan skips `min` bytes after each cut: the hardware's prefetcher has lost the thread. */
static void prefetch_ahead(const uint8_t *data, size_t begin)
{
    const uint8_t *first = data + begin - WARM_UP_ROWS * GEAR_ROW;
    for (int i = 0; i < WARM_UP_ROWS * GEAR_ROW + PREFETCH_BYTES; i += GEAR_ROW) {
        __builtin_prefetch(first + i);
    }
}

size_t gear_next_cut(const struct gear_variant *variant, const uint8_t *data, size_t size,
                     size_t start, bool final, const struct chunk_sizes *sizes)
{
    const size_t remaining = size - start;
    if (remaining == 0 || (!final && remaining < sizes->max + GEAR_TAIL_BYTES)) {
        return GEAR_UNDECIDED;
    }
    if (remaining < sizes->min + GEAR_TAIL_BYTES) {
        return size;
    }
    const size_t begin = start + sizes->min;
    size_t end = start + sizes->max;
    if (remaining < sizes->max) {
        /* Positions that leave less than a tail can't cut. So the last row that matters ends
           well inside the data, and there are only whole rows. */
        size_t positions = size - GEAR_TAIL_BYTES + 1 - begin;
        end = begin + (positions + GEAR_ROW - 1) / GEAR_ROW * GEAR_ROW;
    }
    const size_t norm = start + sizes->norm < end ? start + sizes->norm : end;
    const uint64_t range = UINT64_C(1) << 32;
    const uint32_t t1 = (uint32_t)(range - range / 4 / sizes->norm);
    const uint32_t t2 = (uint32_t)(range - 4 * range / sizes->norm);

    prefetch_ahead(data, begin);
    size_t cut = variant->first_at_least(data, begin, norm, t1);
    if (cut == norm) {
        cut = variant->first_at_least(data, norm, end, t2);
    }
    if (cut == end) {
        if (remaining < sizes->max) {
            return size;
        }
        cut = variant->last_largest(data, norm, end);
    }
    return size - cut < GEAR_TAIL_BYTES ? size : cut;
}
