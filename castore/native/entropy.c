#include "entropy.h"

#include <math.h>
#include <string.h>

enum {
    SAMPLES = 16,
    SAMPLE_BYTES = 256,
    SAMPLED_BYTES = SAMPLES * SAMPLE_BYTES,
};

/* sum(n * log2 n) over the counts n of the 256 byte values, in units of 2^-16, at or below which
   12 - sum / 4096 bits a byte are more than 7.93. Integers: chunker.py decides alike. */
#define SUM_MAX UINT64_C(1092532305)

static uint32_t n_log2_n[SAMPLED_BYTES + 1];

void entropy_prepare(void)
{
    for (int n = 1; n <= SAMPLED_BYTES; n++) {
        n_log2_n[n] = (uint32_t)(n * log2(n) * 65536 + 0.5);
    }
}

bool entropy_is_high(const uint8_t *data, size_t size)
{
    if (size < SAMPLED_BYTES) {
        return false;
    }
    /* Two histograms: a byte that repeats does not wait for its own last increment. */
    uint16_t counts[2][256];
    memset(counts, 0, sizeof counts);
    for (size_t sample = 0; sample < SAMPLES; sample++) {
        const uint8_t *at = data + (size - SAMPLE_BYTES) / (SAMPLES - 1) * sample;
        for (int i = 0; i < SAMPLE_BYTES; i += 2) {
            counts[0][at[i]]++;
            counts[1][at[i + 1]]++;
        }
    }
    uint64_t sum = 0;
    for (int value = 0; value < 256; value++) {
        sum += n_log2_n[counts[0][value] + counts[1][value]];
    }
    return sum <= SUM_MAX;
}
