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
    DELTA_BYTES_MAX = 1 << 28,     /* of what is encoded, and of all its bases */
    DELTA_CONTEXT_MAX = 128 << 10, /* bytes of context; what a block of zstd holds at most */
    DELTA_BASES_MAX = 4,
};

/* What a delta is of: some bytes, one piece behind the other. Begins as zeros. */
struct delta_bases {
    struct delta_input each[DELTA_BASES_MAX];
    size_t count, size;
};

/* False if it is one too many, or they are too large together. */
bool delta_add_base(struct delta_bases *bases, struct delta_input base);

/* How large sequences can get for `size` bytes. Literals are never more than `size`. */
size_t delta_sequences_bound(size_t size);

/* A sequence, decoded: so many literals, then [from, from + copied) of the bases. */
struct delta_copy {
    uint32_t literals, from, copied;
};

/* What encoding takes, made once for many: room for what is `raw_max` bytes, with bases of
   `bases_max` together. */
struct delta_work {
    uint32_t *positions;
    uint8_t *joined, *sequences, *literals;
    struct delta_copy *copies;
};

/* False if memory ran out; else it is ended by the caller. */
bool delta_work_begin(struct delta_work *work, size_t raw_max, size_t bases_max);
void delta_work_end(struct delta_work *work);

struct delta_limits {
    size_t literals_max; /* with more nothing is made */
    size_t context_from; /* fewer literals have no context */
};

/* Sequences, literals and the context of these (see delta_context), one behind the other; `bytes`
   is the caller's to free, and NULL where nothing was made. */
struct delta_encoded {
    uint8_t *bytes;
    size_t sequences, literals, context;
};

/* False if memory ran out. */
bool delta_encode(struct delta_work *work, const struct delta_bases *bases, struct delta_input raw,
                  struct delta_limits limits, struct delta_encoded *encoded);

/* The sequences; `copies` has room for a third of their bytes. False if they are malformed: no copy
   is of what is not in the bases. */
bool delta_copies(struct delta_input sequences, size_t bases_size, struct delta_copy *copies,
                  size_t *count);

/* What the copies (their bytes) and literals say, which is to fill `raw` exactly; false if it does
   not, or if they are not in the bases. */
bool delta_apply(struct delta_input copies, struct delta_input literals,
                 const struct delta_bases *bases, struct delta_output raw);

/* The bytes of the bases that literals stand in for: what literals look like, if they are like
   anything. `literals` is how many there are; `size` is how many bytes it takes, at most
   DELTA_CONTEXT_MAX. Where `context` is NULL only that is found out; else `size` is that, and the
   room that there is. False if the copies are not in the bases. */
bool delta_context(struct delta_input copies, size_t literals, const struct delta_bases *bases,
                   uint8_t *context, size_t *size);

/* The blocks of a zstd frame, and how many bytes it says that they hold; false if it is none, or
   does not say. Of the blocks themselves nothing is looked at. */
bool zstd_blocks(struct delta_input frame, struct delta_input *blocks, uint64_t *content);

/* A zstd frame that decodes to the context and the literals behind it, for blocks that have the
   context as their dictionary: to zstd it is the same whether bytes came before as a dictionary or
   in a block, and a decoder without a dictionary need not be made anew for each delta. `context` is
   what delta_context measured; `frame` has room for delta_frame_bytes. */
size_t delta_frame_bytes(struct delta_input blocks, size_t context);
void delta_frame(struct delta_input copies, struct delta_input blocks, size_t literals,
                 const struct delta_bases *bases, size_t context, uint8_t *frame);

#endif
