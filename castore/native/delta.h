/* Deltas: what some bytes are made of, as copies from a base and literals between them. Pure C; it
   knows nothing of Python, and nothing of compression, which is for what is left.

   A sequence is three numbers, each a varint of up to 5 bytes (7 bits a byte, the lowest first):
   how many literals come first; where the copy begins in the base, less where it would if the
   literals replaced as many of the base's bytes behind the last copy, in zigzag (2n for n >= 0,
   -2n - 1 for less); and how many bytes are copied. What is left of the literals ends it. */

#ifndef CASTORE_DELTA_H
#define CASTORE_DELTA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct delta_input {
    const uint8_t *bytes;
    size_t size;
};

struct delta_output {
    uint8_t *bytes;
    size_t size;
};

enum {
    DELTA_BYTES_MAX = 1 << 28,     /* of what is encoded, and of a base */
    DELTA_CONTEXT_MAX = 128 << 10, /* bytes of context */
};

/* How large sequences can get for `size` bytes. Literals are never more than `size`. */
size_t delta_sequences_bound(size_t size);

/* False if memory ran out. Both outputs have room for the most that there can be. */
bool delta_encode(struct delta_input base, struct delta_input raw, struct delta_output *sequences,
                  struct delta_output *literals);

/* What the sequences and literals say, which is to fill `raw` exactly; false if it does not, or if
   they are malformed. */
bool delta_apply(struct delta_input sequences, struct delta_input literals,
                 struct delta_input base, struct delta_output *raw);

/* The bytes of the base that literals stand in for: what literals look like, if they are like
   anything. `literals` is how many there are; `context` has room for DELTA_CONTEXT_MAX bytes.
   False if the sequences are malformed. */
bool delta_context(struct delta_input sequences, size_t literals, struct delta_input base,
                   struct delta_output *context);

#endif
