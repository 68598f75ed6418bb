/* Python's door to the making of deltas. */

#ifndef CASTORE_ENDELTA_H
#define CASTORE_ENDELTA_H

#include <Python.h>

/* Adds the functions to castore._native; -1 with an exception set if that fails. */
int endelta_add(PyObject *module);

#endif
