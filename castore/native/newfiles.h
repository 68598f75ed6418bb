#ifndef CASTORE_NEWFILES_H
#define CASTORE_NEWFILES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Adds the functions to castore._native; -1 with an exception set if that fails. */
int newfiles_add(PyObject *module);

#endif
