/* Buffers of Python that deltas are made of, held. */

#ifndef CASTORE_HELD_H
#define CASTORE_HELD_H

#include <Python.h>

#include "delta.h"

/* The bases of a delta, held until they are released. */
struct held_bases {
    Py_buffer buffers[DELTA_BASES_MAX];
    struct delta_bases bases;
};

struct delta_input input_of(const Py_buffer *buffer);

/* False with an exception set, which is a ValueError if they are too many, or too large. On success
   the caller releases them. */
bool hold_bases(PyObject *sequence, struct held_bases *held);
void release_bases(struct held_bases *held);

#endif
