/* FastCDC of 2020 (Xia et al., "The Design of Fast Content-Defined Chunking for Data
   Deduplication Based Storage Systems"): normalised chunking at level 2, two bytes rolled per turn.
   Written for bench_chunker.py, to compare with; and a plain read of memory, as the floor. */

#include <stddef.h>
#include <stdint.h>

static uint64_t gear[256], gear_shifted[256];

/* Any table of random words does: this one is SplitMix64's first 256. */
void fastcdc_prepare(void)
{
    uint64_t state = 0;
    for (int byte = 0; byte < 256; byte++) {
        uint64_t word = state += UINT64_C(0x9e3779b97f4a7c15);
        word = (word ^ word >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
        word = (word ^ word >> 27) * UINT64_C(0x94d049bb133111eb);
        gear[byte] = word ^ word >> 31;
        gear_shifted[byte] = gear[byte] << 1;
    }
}

/* The highest bits below the top one: they have seen the most bytes. */
static uint64_t mask_of(int bits)
{
    return ((UINT64_C(1) << bits) - 1) << (63 - bits);
}

static size_t next_length(const uint8_t *data, size_t size, size_t min, size_t norm, size_t max,
                          uint64_t strict, uint64_t easy)
{
    if (size <= min) {
        return size;
    }
    const size_t end = size < max ? size : max;
    const size_t eased = norm < end ? norm : end;
    uint64_t hash = 0, mask = strict;
    size_t i = min & ~(size_t)1;
    for (int phase = 0; phase < 2; phase++) {
        const size_t limit = phase == 0 ? eased : end;
        const uint64_t mask_shifted = mask << 1;
        for (; i + 1 < limit; i += 2) {
            hash = (hash << 2) + gear_shifted[data[i]];
            if ((hash & mask_shifted) == 0) {
                return i;
            }
            hash += gear[data[i + 1]];
            if ((hash & mask) == 0) {
                return i + 1;
            }
        }
        mask = easy;
    }
    return end;
}

/* Fills `ends` and returns how many chunks there are. `bits` is log2 of the average: cuts are four
   times rarer before `norm`, and four times more frequent after it. */
size_t fastcdc_cuts(const uint8_t *data, size_t size, size_t min, size_t norm, size_t max, int bits,
                    uint64_t *ends)
{
    size_t count = 0;
    for (size_t start = 0; start < size; count++) {
        start += next_length(data + start, size - start, min, norm, max, mask_of(bits + 2),
                             mask_of(bits - 2));
        ends[count] = start;
    }
    return count;
}

/* The least that looking at every byte costs: an exclusive or of all words. */
uint64_t read_words(const uint64_t *words, size_t count)
{
    uint64_t sums[16] = {0};
    for (size_t i = 0; i + 16 <= count; i += 16) {
        for (int lane = 0; lane < 16; lane++) {
            sums[lane] ^= words[i + lane];
        }
    }
    uint64_t sum = 0;
    for (int lane = 0; lane < 16; lane++) {
        sum ^= sums[lane];
    }
    return sum;
}
