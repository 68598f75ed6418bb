#ifndef CASTORE_MAPPING_H
#define CASTORE_MAPPING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

extern PyType_Spec mapping_spec;

#endif
