/* The chunker's kernel: strided gear. Pure C; it knows nothing of Python.

   64 interleaved gear hashes, one for each byte position modulo 64. With b the bytes, little
   endian and 32-bit lanes:

       d(i)   = LE32(b + i - 4) + LE32(b + i - 9)
       phi(i) = s16lo(d(i)) * GEAR_K0 + s16hi(d(i)) * GEAR_K1
       X(i)   = (X(i - 64) << 3) xor phi(i)

   A term is shifted out after 11 rows of 64, so X(i) depends on the 649 bytes before i alone.
   A chunk [start, i) is cut at the first i with X(i) >= T1 while min <= i - start < norm, and
   X(i) >= T2 while norm <= i - start < max. Failing that, at the last i of [norm, max) where X is
   largest, and if that largest is 0 (a run of zeros), at max. */

#ifndef CASTORE_KERNEL_H
#define CASTORE_KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    GEAR_ROW = 64,             /* sizes are multiples of it */
    GEAR_MIN_BYTES_MIN = 704,  /* 11 rows: every X that can cut sees a full window of its own chunk */
    GEAR_MAX_BYTES_MAX = 1 << 30,
    GEAR_TAIL_BYTES = 256,     /* a shorter tail joins the chunk before it */
};

struct chunk_sizes {
    size_t min, norm, max;
};

/* The two questions that cutting asks about X(i), for i in [begin, end): whole rows, which follow
   649 bytes of data. */
struct gear_variant {
    const char *name;
    /* The first i with X(i) >= threshold, else `end`. */
    size_t (*first_at_least)(const uint8_t *data, size_t begin, size_t end, uint32_t threshold);
    /* The last i where X is largest, or `end` if it is 0 everywhere. */
    size_t (*last_largest)(const uint8_t *data, size_t begin, size_t end);
};

/* Every variant that was compiled in, fastest first; portable C is the last of them. */
extern const struct gear_variant gear_variants[];
extern const size_t gear_variant_count;

/* Whether this CPU and operating system run the variant. */
bool gear_variant_runs(const struct gear_variant *variant);

/* The end of the chunk that starts at `start`, or GEAR_UNDECIDED: nothing is left, or the input
   goes on (not `final`) and fewer than max + GEAR_TAIL_BYTES bytes of it are there. */
#define GEAR_UNDECIDED SIZE_MAX
size_t gear_next_cut(const struct gear_variant *variant, const uint8_t *data, size_t size,
                     size_t start, bool final, const struct chunk_sizes *sizes);

#endif
