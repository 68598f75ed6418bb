/* Python's door to what deltas decode to. */

#ifndef CASTORE_UNDELTA_H
#define CASTORE_UNDELTA_H

#include <Python.h>

/* Adds the functions to castore._native; -1 with an exception set if that fails. */
int undelta_add(PyObject *module);

#endif
