#include "delta.h"

#include <string.h>

enum {
    SHORT_BYTES = 32,
    CONTEXT_MORE = 256,
    ZSTD_MAGIC = 0xFD2FB528,
    ZSTD_SINGLE_SEGMENT = 0x20,
    ZSTD_RESERVED = 0x08,
    ZSTD_CHECKSUM = 0x04,
    ZSTD_CHECKSUM_BYTES = 4,
    ZSTD_HEAD_BYTES = 9, /* of a frame as it is made here: magic, descriptor, u32 size */
    ZSTD_HEAD = ZSTD_SINGLE_SEGMENT | 2 << 6,
    ZSTD_BLOCK_HEAD_BYTES = 3,
};

static inline size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* ---- sequences ------------------------------------------------------------------------------ */

static inline bool take_number(struct delta_input *from, uint64_t *number)
{
    if (from->size > 0 && *from->bytes < 0x80) {
        *number = *from->bytes++;
        from->size--;
        return true;
    }
    *number = 0;
    for (int shift = 0; shift < 35; shift += 7) {
        if (from->size == 0) {
            return false;
        }
        const uint8_t byte = *from->bytes++;
        from->size--;
        *number |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            return true;
        }
    }
    return false;
}

static inline bool lies_in(const struct delta_copy *copy, size_t bases_size)
{
    return copy->from <= bases_size && copy->copied <= bases_size - copy->from;
}

bool delta_copies(struct delta_input sequences, size_t bases_size, struct delta_copy *copies,
                  size_t *count)
{
    int64_t expected = 0;
    for (*count = 0; sequences.size > 0; ++*count) {
        uint64_t literals, zigzag, copied;
        if (!take_number(&sequences, &literals) || !take_number(&sequences, &zigzag) ||
            !take_number(&sequences, &copied)) {
            return false;
        }
        const int64_t moved = zigzag & 1 ? -(int64_t)(zigzag / 2) - 1 : (int64_t)(zigzag / 2);
        const int64_t from = expected + (int64_t)literals + moved;
        if (literals > DELTA_BYTES_MAX || from < 0 || from > DELTA_BYTES_MAX ||
            copied > DELTA_BYTES_MAX) {
            return false;
        }
        const struct delta_copy copy = {(uint32_t)literals, (uint32_t)from, (uint32_t)copied};
        if (!lies_in(&copy, bases_size)) {
            return false;
        }
        copies[*count] = copy;
        expected = from + (int64_t)copied;
    }
    return true;
}

/* The next one; they need not be aligned. */
static inline struct delta_copy take_copy(struct delta_input *copies)
{
    struct delta_copy copy;
    memcpy(&copy, copies->bytes, sizeof copy);
    copies->bytes += sizeof copy;
    copies->size -= sizeof copy;
    return copy;
}

static bool are_copies(struct delta_input copies)
{
    return copies.size % sizeof(struct delta_copy) == 0;
}

/* ---- bases ---------------------------------------------------------------------------------- */

bool delta_add_base(struct delta_bases *bases, struct delta_input base)
{
    if (bases->count == DELTA_BASES_MAX || base.size > DELTA_BYTES_MAX - bases->size) {
        return false;
    }
    bases->each[bases->count++] = base;
    bases->size += base.size;
    return true;
}

/* Most pieces are short: where there is room, these are copied without a look at how short. */
static inline void copy_bytes(uint8_t *to, size_t room, const uint8_t *from, size_t there,
                              size_t size)
{
    if (size <= SHORT_BYTES && room >= SHORT_BYTES && there >= SHORT_BYTES) {
        memcpy(to, from, SHORT_BYTES);
    } else {
        memcpy(to, from, size);
    }
}

/* Copy [from, from + size) of the bases, which has them, to where `room` bytes are. */
static inline void copy_bases(uint8_t *to, size_t room, const struct delta_bases *bases,
                              size_t from, size_t size)
{
    const struct delta_input *base = bases->each;
    for (; size > 0; base++) {
        if (from >= base->size) {
            from -= base->size;
            continue;
        }
        const size_t there = base->size - from, here = least(size, there);
        copy_bytes(to, room, base->bytes + from, there, here);
        to += here;
        room -= here;
        size -= here;
        from = 0;
    }
}

bool delta_apply(struct delta_input copies, struct delta_input literals,
                 const struct delta_bases *bases, struct delta_output raw)
{
    if (!are_copies(copies)) {
        return false;
    }
    while (copies.size > 0) {
        const struct delta_copy next = take_copy(&copies);
        if (next.literals > literals.size || next.literals > raw.size ||
            next.copied > raw.size - next.literals || !lies_in(&next, bases->size)) {
            return false;
        }
        copy_bytes(raw.bytes, raw.size, literals.bytes, literals.size, next.literals);
        raw.bytes += next.literals;
        raw.size -= next.literals;
        copy_bases(raw.bytes, raw.size, bases, next.from, next.copied);
        raw.bytes += next.copied;
        raw.size -= next.copied;
        literals.bytes += next.literals;
        literals.size -= next.literals;
    }
    if (literals.size != raw.size) {
        return false;
    }
    memcpy(raw.bytes, literals.bytes, literals.size);
    return true;
}

/* ---- what literals stand in for ------------------------------------------------------------- */

/* What of the bases, from where a copy ended, `literals` bytes stand in for: up to where the next
   one begins, if that is not too far; else as much as there are literals. */
static size_t replaced_bytes(size_t bases_size, size_t expected, size_t literals, size_t next)
{
    if (literals == 0) {
        return 0;
    }
    if (next > expected && next - expected <= 4 * literals + CONTEXT_MORE) {
        return next - expected;
    }
    return least(literals + CONTEXT_MORE, bases_size - expected);
}

/* Without `context` it is only measured; else `end` is what was. */
static inline void add_context(uint8_t *context, size_t end, size_t *size,
                               const struct delta_bases *bases, size_t from, size_t replaced)
{
    if (replaced > DELTA_CONTEXT_MAX - *size) {
        return;
    }
    if (context != NULL) {
        copy_bases(context + *size, end - *size, bases, from, replaced);
    }
    *size += replaced;
}

bool delta_context(struct delta_input copies, size_t literals, const struct delta_bases *bases,
                   uint8_t *context, size_t *size)
{
    const size_t end = *size;
    size_t expected = 0;
    *size = 0;
    if (!are_copies(copies)) {
        return false;
    }
    while (copies.size > 0) {
        const struct delta_copy next = take_copy(&copies);
        if (next.literals > literals || !lies_in(&next, bases->size)) {
            return false;
        }
        const size_t replaced = replaced_bytes(bases->size, expected, next.literals, next.from);
        add_context(context, end, size, bases, expected, replaced);
        literals -= next.literals;
        expected = (size_t)next.from + next.copied;
    }
    add_context(context, end, size, bases, expected,
                replaced_bytes(bases->size, expected, literals, 0));
    return true;
}

/* ---- literals as a zstd frame --------------------------------------------------------------- */

static uint64_t little_endian(const uint8_t *bytes, size_t size)
{
    uint64_t number = 0;
    for (size_t i = size; i > 0; i--) {
        number = number << 8 | bytes[i - 1];
    }
    return number;
}

static void put_little_endian(uint8_t *bytes, uint64_t number, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        bytes[i] = (uint8_t)(number >> (8 * i));
    }
}

bool zstd_blocks(struct delta_input frame, struct delta_input *blocks, uint64_t *content)
{
    static const size_t dictionary_bytes[] = {0, 1, 2, 4};
    static const size_t content_bytes[] = {0, 2, 4, 8};
    if (frame.size < 5 || little_endian(frame.bytes, 4) != (uint32_t)ZSTD_MAGIC) {
        return false;
    }
    const uint8_t descriptor = frame.bytes[4];
    const bool single = (descriptor & ZSTD_SINGLE_SEGMENT) != 0;
    size_t told = content_bytes[descriptor >> 6]; /* bytes that tell the content's size */
    if (told == 0 && single) {
        told = 1;
    }
    size_t head = 5 + !single + dictionary_bytes[descriptor & 3];
    const size_t behind = descriptor & ZSTD_CHECKSUM ? ZSTD_CHECKSUM_BYTES : 0;
    if (descriptor & ZSTD_RESERVED || told == 0 || frame.size < head + told + behind) {
        return false;
    }
    *content = little_endian(frame.bytes + head, told) + (told == 2 ? 256 : 0);
    head += told;
    *blocks = (struct delta_input){frame.bytes + head, frame.size - head - behind};
    return true;
}

size_t delta_frame_bytes(struct delta_input blocks, size_t context)
{
    return ZSTD_HEAD_BYTES + (context > 0 ? ZSTD_BLOCK_HEAD_BYTES : 0) + context + blocks.size;
}

void delta_frame(struct delta_input copies, struct delta_input blocks, size_t literals,
                 const struct delta_bases *bases, size_t context, uint8_t *frame)
{
    put_little_endian(frame, (uint32_t)ZSTD_MAGIC, 4);
    frame[4] = ZSTD_HEAD;
    put_little_endian(frame + 5, context + literals, 4);
    frame += ZSTD_HEAD_BYTES;
    if (context > 0) { /* a block that is stored raw, and not the last */
        put_little_endian(frame, (uint64_t)context << 3, ZSTD_BLOCK_HEAD_BYTES);
        frame += ZSTD_BLOCK_HEAD_BYTES;
        delta_context(copies, literals, bases, frame, &context);
    }
    memcpy(frame + context, blocks.bytes, blocks.size);
}
