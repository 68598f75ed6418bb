#ifndef CASTORE_SMALLFILES_H
#define CASTORE_SMALLFILES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Adds the functions to castore._native; -1 with an exception set if that fails. */
int smallfiles_add(PyObject *module);

#endif
