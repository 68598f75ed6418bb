/* Is it worth giving these bytes to the compressor? Pure C; it knows nothing of Python. */

#ifndef CASTORE_ENTROPY_H
#define CASTORE_ENTROPY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Fills the table that entropy_is_high reads: once, before its first call. */
void entropy_prepare(void);

/* Whether 4,096 bytes, taken as 16 samples of 256 spread evenly, have an order-0 entropy above
   7.93 bits a byte. Uniformly random bytes come to about 7.955 in a sample of that size. Fewer
   bytes can't be told from random ones: the answer is then no. */
bool entropy_is_high(const uint8_t *data, size_t size);

#endif
