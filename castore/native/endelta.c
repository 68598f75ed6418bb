#define PY_SSIZE_T_CLEAN
#include "endelta.h"

#include "held.h"

#include <stdlib.h>

/* One chunk, and what it is made of. */
struct chunk {
    Py_buffer raw;
    struct held_bases held;
    struct delta_encoded encoded;
};

struct chunks {
    struct chunk *each;
    Py_ssize_t count; /* that are held */
    size_t raw_max, bases_max;
};

static void release_chunks(struct chunks *chunks)
{
    for (Py_ssize_t i = 0; i < chunks->count; i++) {
        PyBuffer_Release(&chunks->each[i].raw);
        release_bases(&chunks->each[i].held);
        free(chunks->each[i].encoded.bytes);
    }
    free(chunks->each);
}

static size_t most(size_t a, size_t b)
{
    return a > b ? a : b;
}

static bool hold_chunk(PyObject *pair, struct chunks *chunks)
{
    struct chunk *chunk = &chunks->each[chunks->count];
    PyObject *bases;
    if (!PyArg_ParseTuple(pair, "y*O:delta_encode_all", &chunk->raw, &bases)) {
        return false;
    }
    if (chunk->raw.len > DELTA_BYTES_MAX) {
        PyErr_SetString(PyExc_ValueError, "a delta is of at most 2**28 bytes");
    } else if (hold_bases(bases, &chunk->held)) {
        chunks->raw_max = most(chunks->raw_max, (size_t)chunk->raw.len);
        chunks->bases_max = most(chunks->bases_max, chunk->held.bases.size);
        chunks->count++;
        return true;
    }
    PyBuffer_Release(&chunk->raw);
    return false;
}

/* False with an exception set. On success, or not, the caller releases them. */
static bool hold_chunks(PyObject *pairs, struct chunks *chunks)
{
    const Py_ssize_t count = PyTuple_Size(pairs);
    *chunks = (struct chunks){calloc((size_t)count + 1, sizeof *chunks->each), 0, 0, 0};
    if (chunks->each == NULL) {
        PyErr_NoMemory();
        return false;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *pair = PyTuple_GetItem(pairs, i);
        if (!PyTuple_Check(pair)) {
            PyErr_SetString(PyExc_TypeError, "a chunk is a tuple of its bytes and its bases");
            return false;
        }
        if (!hold_chunk(pair, chunks)) {
            return false;
        }
    }
    return true;
}

/* False if memory ran out. */
static bool encode(struct chunks *chunks, double literals_share, size_t context_from)
{
    struct delta_work work;
    if (!delta_work_begin(&work, chunks->raw_max, chunks->bases_max)) {
        return false;
    }
    bool good = true;
    for (Py_ssize_t i = 0; good && i < chunks->count; i++) {
        struct chunk *chunk = &chunks->each[i];
        const struct delta_limits limits = {
            .literals_max = (size_t)(literals_share * (double)chunk->raw.len),
            .context_from = context_from,
        };
        good = delta_encode(&work, &chunk->held.bases, input_of(&chunk->raw), limits,
                            &chunk->encoded);
    }
    delta_work_end(&work);
    return good;
}

static PyObject *parts_of(const struct delta_encoded *encoded)
{
    if (encoded->bytes == NULL) {
        Py_RETURN_NONE;
    }
    const char *bytes = (const char *)encoded->bytes;
    const Py_ssize_t sequences = (Py_ssize_t)encoded->sequences,
                     literals = (Py_ssize_t)encoded->literals,
                     context = (Py_ssize_t)encoded->context;
    return Py_BuildValue("y#y#y#", bytes, sequences, bytes + sequences, literals,
                         bytes + sequences + literals, context);
}

static PyObject *list_of(const struct chunks *chunks)
{
    PyObject *list = PyList_New(chunks->count);
    for (Py_ssize_t i = 0; list != NULL && i < chunks->count; i++) {
        PyObject *parts = parts_of(&chunks->each[i].encoded);
        if (parts == NULL || PyList_SetItem(list, i, parts) != 0) {
            Py_CLEAR(list);
        }
    }
    return list;
}

static PyObject *delta_encode_all(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *pairs, *result = NULL;
    double literals_share;
    Py_ssize_t context_from;
    struct chunks chunks;
    if (!PyArg_ParseTuple(arguments, "O!dn:delta_encode_all", &PyTuple_Type, &pairs,
                          &literals_share, &context_from)) {
        return NULL;
    }
    if (hold_chunks(pairs, &chunks)) {
        bool done;
        Py_BEGIN_ALLOW_THREADS
        done = encode(&chunks, literals_share, (size_t)context_from);
        Py_END_ALLOW_THREADS
        result = done ? list_of(&chunks) : PyErr_NoMemory();
    }
    release_chunks(&chunks);
    return result;
}

static PyMethodDef functions[] = {
    {"delta_encode_all", delta_encode_all, METH_VARARGS,
     "delta_encode_all(chunks, literals_share, context_from, /)\n--\n\n"
     "For each of the chunks, a tuple of pairs of its bytes and its bases, at most 4: the sequences\n"
     "and the literals that make it of the bases, and the context of these, the bytes of the bases\n"
     "that they stand in for, which is empty where there are fewer literals than `context_from`;\n"
     "None where they are more than `literals_share` of it."},
    {NULL, NULL, 0, NULL},
};

int endelta_add(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
