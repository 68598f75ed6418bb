/* The GIL is let go of for what takes long. To take it back from threads that run Python takes
   longer than what is done with a small object. */

#ifndef CASTORE_GIL_H
#define CASTORE_GIL_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>

/* NULL if it is kept. */
static inline PyThreadState *let_go_of_gil(bool takes_long)
{
    return takes_long ? PyEval_SaveThread() : NULL;
}

static inline void take_gil_back(PyThreadState *state)
{
    if (state != NULL) {
        PyEval_RestoreThread(state);
    }
}

#endif
