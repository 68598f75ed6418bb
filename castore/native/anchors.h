/* Anchors: a sample of the places in some bytes, chosen by what stands there, so that the same
   bytes have the same anchors wherever they are. Pure C; it knows nothing of Python.

   With b the bytes, little endian, and 32-bit arithmetic: position i is an anchor if
   (LE32(b + i) + 5 * LE32(b + i + 4)) * 0x9E3779B1 >= 0xFF800000, which is so at one position in
   512 of random bytes, and at none of a run of zeros. Its hash is of the ANCHOR_BYTES bytes from i
   on. castore/stream/anchors.py has the reference. */

#ifndef CASTORE_ANCHORS_H
#define CASTORE_ANCHORS_H

#include <stddef.h>
#include <stdint.h>

enum {
    ANCHOR_BYTES = 24, /* three words */
};

struct anchor {
    uint64_t hash;
    size_t position;
};

/* The anchors from `begin` on into `found`, at most `most` of them (64 or more), in order; how many
   there are. `begin` moves to where the rest are to be looked for, or to `size`. */
size_t find_anchors(const uint8_t *data, size_t size, size_t *begin, struct anchor *found,
                    size_t most);

/* Chooses the instruction set: once, before the first call. */
void anchors_prepare(void);

#endif
