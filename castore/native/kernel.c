#include "kernel.h"

#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define GEAR_X86 1
#include <immintrin.h>
#endif

/* The multipliers are part of the format: bench/choose_multipliers.py has the evidence. */
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
    WARM_UP_BYTES = 10 * GEAR_ROW, /* with its own row, 11: a full window */
    PREFETCH_BYTES = 3072,         /* AVX2 falls several-fold outside L2 without it */
    LANES_PER_PHASE = GEAR_ROW / 4,
};

/* X of one row of 64 positions. Position p is lane p / 4 of phase p % 4: the lanes of a phase lie
   side by side, as do the 32-bit words that they read. */
typedef uint32_t gear_row[GEAR_ROW];

static inline uint32_t largest_of(const uint32_t *lanes, size_t count)
{
    uint32_t largest = 0;
    for (size_t lane = 0; lane < count; lane++) {
        largest = lanes[lane] > largest ? lanes[lane] : largest;
    }
    return largest;
}

static inline size_t position_in_row(gear_row row, uint32_t threshold, bool last)
{
    for (size_t n = 0; n < GEAR_ROW; n++) {
        size_t position = last ? GEAR_ROW - 1 - n : n;
        if (row[position % 4 * LANES_PER_PHASE + position / 4] >= threshold) {
            return position;
        }
    }
    return GEAR_ROW;
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
    for (int phase = 0; phase < 4; phase++) {
        uint32_t near[LANES_PER_PHASE], far[LANES_PER_PHASE];
        memcpy(near, at + phase - 4, sizeof near);
        memcpy(far, at + phase - 9, sizeof far);
        uint32_t *lanes = x + phase * LANES_PER_PHASE;
        for (int lane = 0; lane < LANES_PER_PHASE; lane++) {
            uint32_t d = little_endian(near[lane]) + little_endian(far[lane]);
            uint32_t low = (uint32_t)((int16_t)d * k0);
            uint32_t high = (uint32_t)((int16_t)(d >> 16) * k1);
            lanes[lane] = (lanes[lane] << 3) ^ (low + high);
        }
    }
}

static size_t scan_portable(const uint8_t *data, size_t begin, size_t end, uint32_t threshold,
                            bool last, uint32_t *peak)
{
    gear_row x = {0};
    size_t found = end;
    *peak = 0;
    for (size_t i = begin - WARM_UP_BYTES; i < begin; i += GEAR_ROW) {
        step_portable(x, data + i);
    }
    for (size_t i = begin; i < end; i += GEAR_ROW) {
        step_portable(x, data + i);
        uint32_t largest = largest_of(x, GEAR_ROW);
        *peak = largest > *peak ? largest : *peak;
        if (largest >= threshold) {
            found = i + position_in_row(x, threshold, last);
            if (!last) {
                break;
            }
        }
    }
    return found;
}

#ifdef GEAR_X86

/* ---- AVX2: a phase is two registers of 8 lanes ---------------------------------------------- */

#define AVX2 TARGET("avx2") static inline __attribute__((always_inline))

AVX2 __m256i load_avx2(const uint8_t *at)
{
    return _mm256_loadu_si256((const __m256i *)at);
}

AVX2 __m256i phi_avx2(const uint8_t *at, __m256i k)
{
    return _mm256_madd_epi16(_mm256_add_epi32(load_avx2(at - 4), load_avx2(at - 9)), k);
}

AVX2 void step_avx2(__m256i x[8], const uint8_t *at, __m256i k)
{
#pragma GCC unroll 4
    for (int phase = 0; phase < 4; phase++) {
        __m256i *low = &x[2 * phase], *high = low + 1;
        *low = _mm256_xor_si256(_mm256_slli_epi32(*low, 3), phi_avx2(at + phase, k));
        *high = _mm256_xor_si256(_mm256_slli_epi32(*high, 3), phi_avx2(at + 32 + phase, k));
    }
}

AVX2 __m256i largest_avx2(const __m256i x[8])
{
    __m256i a = _mm256_max_epu32(_mm256_max_epu32(x[0], x[1]), _mm256_max_epu32(x[2], x[3]));
    __m256i b = _mm256_max_epu32(_mm256_max_epu32(x[4], x[5]), _mm256_max_epu32(x[6], x[7]));
    return _mm256_max_epu32(a, b);
}

/* Register by register: a memcpy would keep x in memory all along. */
AVX2 void store_avx2(gear_row row, const __m256i x[8])
{
#pragma GCC unroll 8
    for (int n = 0; n < 8; n++) {
        _mm256_storeu_si256((__m256i *)row + n, x[n]);
    }
}

AVX2 bool any_at_least_avx2(__m256i x, __m256i threshold)
{
    return _mm256_movemask_epi8(_mm256_cmpeq_epi32(_mm256_max_epu32(x, threshold), x)) != 0;
}

TARGET("avx2")
static size_t scan_avx2(const uint8_t *data, size_t begin, size_t end, uint32_t threshold,
                        bool last, uint32_t *peak)
{
    const __m256i k = _mm256_set1_epi32((int)((uint32_t)GEAR_K1 << 16 | GEAR_K0));
    const __m256i thresholds = _mm256_set1_epi32((int)threshold);
    __m256i x[8], peaks = _mm256_setzero_si256();
    size_t found = end;
#pragma GCC unroll 8
    for (int n = 0; n < 8; n++) {
        x[n] = _mm256_setzero_si256();
    }
    for (size_t i = begin - WARM_UP_BYTES; i < begin; i += GEAR_ROW) {
        step_avx2(x, data + i, k);
    }
    for (size_t i = begin; i < end; i += GEAR_ROW) {
        __builtin_prefetch(data + i + PREFETCH_BYTES);
        step_avx2(x, data + i, k);
        __m256i largest = largest_avx2(x);
        peaks = _mm256_max_epu32(peaks, largest);
        if (__builtin_expect(any_at_least_avx2(largest, thresholds), 0)) {
            gear_row row;
            store_avx2(row, x);
            found = i + position_in_row(row, threshold, last);
            if (!last) {
                break;
            }
        }
    }
    uint32_t lanes[8];
    _mm256_storeu_si256((__m256i *)lanes, peaks);
    *peak = largest_of(lanes, 8);
    return found;
}

/* ---- AVX-512BW: a phase is one register of 16 lanes ----------------------------------------- */

#define AVX512 TARGET("avx512f,avx512bw") static inline __attribute__((always_inline))

AVX512 __m512i phi_avx512(const uint8_t *at, __m512i k)
{
    __m512i d = _mm512_add_epi32(_mm512_loadu_si512(at - 4), _mm512_loadu_si512(at - 9));
    return _mm512_madd_epi16(d, k);
}

AVX512 void step_avx512(__m512i x[4], const uint8_t *at, __m512i k)
{
#pragma GCC unroll 4
    for (int phase = 0; phase < 4; phase++) {
        x[phase] = _mm512_xor_si512(_mm512_slli_epi32(x[phase], 3), phi_avx512(at + phase, k));
    }
}

AVX512 void store_avx512(gear_row row, const __m512i x[4])
{
#pragma GCC unroll 4
    for (int phase = 0; phase < 4; phase++) {
        _mm512_storeu_si512(row + phase * LANES_PER_PHASE, x[phase]);
    }
}

TARGET("avx512f,avx512bw")
static size_t scan_avx512bw(const uint8_t *data, size_t begin, size_t end, uint32_t threshold,
                            bool last, uint32_t *peak)
{
    const __m512i k = _mm512_set1_epi32((int)((uint32_t)GEAR_K1 << 16 | GEAR_K0));
    const __m512i thresholds = _mm512_set1_epi32((int)threshold);
    __m512i x[4], peaks = _mm512_setzero_si512();
    size_t found = end;
#pragma GCC unroll 4
    for (int phase = 0; phase < 4; phase++) {
        x[phase] = _mm512_setzero_si512();
    }
    for (size_t i = begin - WARM_UP_BYTES; i < begin; i += GEAR_ROW) {
        step_avx512(x, data + i, k);
    }
    for (size_t i = begin; i < end; i += GEAR_ROW) {
        __builtin_prefetch(data + i + PREFETCH_BYTES);
        step_avx512(x, data + i, k);
        __m512i largest = _mm512_max_epu32(_mm512_max_epu32(x[0], x[1]),
                                           _mm512_max_epu32(x[2], x[3]));
        peaks = _mm512_max_epu32(peaks, largest);
        if (__builtin_expect(_mm512_cmpge_epu32_mask(largest, thresholds) != 0, 0)) {
            gear_row row;
            store_avx512(row, x);
            found = i + position_in_row(row, threshold, last);
            if (!last) {
                break;
            }
        }
    }
    uint32_t lanes[16];
    _mm512_storeu_si512(lanes, peaks);
    *peak = largest_of(lanes, 16);
    return found;
}

#endif /* GEAR_X86 */

/* ---- which variants there are --------------------------------------------------------------- */

const struct gear_variant gear_variants[] = {
#ifdef GEAR_X86
    {"avx512bw", scan_avx512bw},
    {"avx2", scan_avx2},
#endif
    {"portable", scan_portable},
};
const size_t gear_variant_count = sizeof gear_variants / sizeof *gear_variants;

bool gear_variant_runs(const struct gear_variant *variant)
{
#ifdef GEAR_X86
    /* __builtin_cpu_supports asks XGETBV too: the operating system must save the registers. */
    if (variant->scan == scan_avx512bw) {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    }
    if (variant->scan == scan_avx2) {
        return __builtin_cpu_supports("avx2");
    }
#endif
    return variant->scan == scan_portable;
}

/* ---- where to cut --------------------------------------------------------------------------- */

/* The scan skips `min` bytes after each cut: the hardware's prefetcher has lost the thread. */
static void prefetch_ahead(const uint8_t *data, size_t begin)
{
    for (size_t i = 0; i < WARM_UP_BYTES + PREFETCH_BYTES; i += GEAR_ROW) {
        __builtin_prefetch(data + begin - WARM_UP_BYTES + i);
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
    uint32_t peak;

    prefetch_ahead(data, begin);
    size_t cut = variant->scan(data, begin, norm, t1, false, &peak);
    if (cut == norm) {
        cut = variant->scan(data, norm, end, t2, false, &peak);
    }
    if (cut == end) {
        if (remaining < sizes->max) {
            return size;
        }
        if (peak != 0) {
            cut = variant->scan(data, norm, end, peak, true, &peak);
        }
    }
    return size - cut < GEAR_TAIL_BYTES ? size : cut;
}
