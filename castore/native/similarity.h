/* Python's door to anchors. */

#ifndef CASTORE_SIMILARITY_H
#define CASTORE_SIMILARITY_H

#include <Python.h>

/* Adds the functions to castore._native; -1 with an exception set if that fails. */
int similarity_add(PyObject *module);

#endif
