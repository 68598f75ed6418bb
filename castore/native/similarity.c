#define PY_SSIZE_T_CLEAN
#include "similarity.h"

#include "anchor_table.h"
#include "anchors.h"

#include <stdbool.h>
#include <stdlib.h>

/* ---- anchors -------------------------------------------------------------------------------- */

static int put_anchor(PyObject *found, const struct anchor *anchor)
{
    PyObject *hash = PyLong_FromUnsignedLongLong(anchor->hash);
    PyObject *position = PyLong_FromSize_t(anchor->position);
    int result = -1;
    if (hash != NULL && position != NULL) {
        result = PyDict_SetItem(found, hash, position);
    }
    Py_XDECREF(hash);
    Py_XDECREF(position);
    return result;
}

static PyObject *anchors(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer buffer;
    if (!PyArg_ParseTuple(arguments, "y*:anchors", &buffer)) {
        return NULL;
    }
    struct anchor some[512];
    PyObject *found = PyDict_New();
    size_t begin = 0, size = (size_t)buffer.len;
    while (found != NULL && begin < size) {
        size_t count;
        Py_BEGIN_ALLOW_THREADS
        count = find_anchors(buffer.buf, size, &begin, some, sizeof some / sizeof *some);
        Py_END_ALLOW_THREADS
        for (size_t i = 0; i < count; i++) {
            if (put_anchor(found, &some[i]) != 0) {
                Py_CLEAR(found);
                break;
            }
        }
    }
    PyBuffer_Release(&buffer);
    return found;
}

/* ---- tables of anchors ----------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    struct anchor_table table;
    struct anchor_set sought;
} AnchorTable;

static PyObject *table_new(PyTypeObject *type, PyObject *arguments, PyObject *Py_UNUSED(keywords))
{
    Py_ssize_t slots;
    if (!PyArg_ParseTuple(arguments, "n:AnchorTable", &slots)) {
        return NULL;
    }
    if (slots < 1 || slots > TABLE_SLOTS_MAX) {
        PyErr_SetString(PyExc_ValueError, "a table has from 1 to 65,536 slots");
        return NULL;
    }
    AnchorTable *self = (AnchorTable *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (self != NULL && !anchor_table_make(&self->table, (size_t)slots)) {
        Py_CLEAR(self);
        PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void table_dealloc(AnchorTable *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    anchor_table_free(&self->table);
    anchor_set_free(&self->sought);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static bool is_slot(const AnchorTable *self, Py_ssize_t slot)
{
    if (slot < 0 || (size_t)slot >= self->table.slots) {
        PyErr_SetString(PyExc_IndexError, "the table has no such slot");
        return false;
    }
    return true;
}

/* Without the GIL, and so without the table, which other threads may change meanwhile. */
static bool fill_set(struct anchor_set *set, Py_buffer *buffer)
{
    bool done;
    Py_BEGIN_ALLOW_THREADS
    done = anchor_set_fill(set, buffer->buf, (size_t)buffer->len);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(buffer);
    return done;
}

static PyObject *table_put(AnchorTable *self, PyObject *arguments)
{
    Py_ssize_t slot;
    Py_buffer buffer;
    if (!PyArg_ParseTuple(arguments, "ny*:put", &slot, &buffer)) {
        return NULL;
    }
    if (!is_slot(self, slot)) {
        PyBuffer_Release(&buffer);
        return NULL;
    }
    struct anchor_set set;
    if (!fill_set(&set, &buffer)) {
        return PyErr_NoMemory();
    }
    anchor_table_forget(&self->table, (size_t)slot);
    if (!anchor_table_put(&self->table, (size_t)slot, set)) {
        anchor_set_free(&set);
        return PyErr_NoMemory();
    }
    Py_RETURN_NONE;
}

static PyObject *table_put_sought(AnchorTable *self, PyObject *arguments)
{
    Py_ssize_t slot;
    if (!PyArg_ParseTuple(arguments, "n:put_sought", &slot) || !is_slot(self, slot)) {
        return NULL;
    }
    anchor_table_forget(&self->table, (size_t)slot);
    if (!anchor_table_put(&self->table, (size_t)slot, self->sought)) {
        return PyErr_NoMemory();
    }
    self->sought = (struct anchor_set){NULL, NULL, 0, 0};
    Py_RETURN_NONE;
}

static PyObject *table_forget(AnchorTable *self, PyObject *arguments)
{
    Py_ssize_t slot;
    if (!PyArg_ParseTuple(arguments, "n:forget", &slot) || !is_slot(self, slot)) {
        return NULL;
    }
    anchor_table_forget(&self->table, (size_t)slot);
    Py_RETURN_NONE;
}

static PyObject *table_seek(AnchorTable *self, PyObject *arguments)
{
    Py_buffer buffer;
    if (!PyArg_ParseTuple(arguments, "y*:seek", &buffer)) {
        return NULL;
    }
    struct anchor_set set;
    if (!fill_set(&set, &buffer)) {
        return PyErr_NoMemory();
    }
    anchor_set_free(&self->sought);
    self->sought = set;
    return PyLong_FromSize_t(set.count);
}

static PyObject *table_rank(AnchorTable *self, PyObject *arguments)
{
    struct shares shares;
    struct ranking ranking;
    if (!PyArg_ParseTuple(arguments, "ddd:rank", &shares.least, &shares.least_left,
                          &shares.least_all)) {
        return NULL;
    }
    if (!anchor_table_rank(&self->table, &self->sought, shares, &ranking)) {
        return PyErr_NoMemory();
    }
    PyObject *ranked = PyList_New(0);
    for (size_t i = 0; ranked != NULL && i < ranking.count; i++) {
        PyObject *each = Py_BuildValue("nd", (Py_ssize_t)ranking.slots[i],
                                       (double)ranking.gains[i] / (double)self->sought.count);
        if (each == NULL || PyList_Append(ranked, each) != 0) {
            Py_CLEAR(ranked);
        }
        Py_XDECREF(each);
    }
    return ranked == NULL ? NULL : Py_BuildValue("NL", ranked, (long long)ranking.shift);
}

static PyObject *table_runs(AnchorTable *self, PyObject *arguments)
{
    size_t slots[RANKED_MAX];
    PyObject *given;
    if (!PyArg_ParseTuple(arguments, "O:runs", &given)) {
        return NULL;
    }
    const Py_ssize_t count = PySequence_Size(given);
    if (count < 0 || count > RANKED_MAX) {
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "at most %d slots", RANKED_MAX);
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *each = PySequence_GetItem(given, i);
        const Py_ssize_t slot = each == NULL ? -1 : PyLong_AsSsize_t(each);
        Py_XDECREF(each);
        if (PyErr_Occurred() || !is_slot(self, slot)) {
            return NULL;
        }
        slots[i] = (size_t)slot;
    }
    size_t in_runs;
    if (!anchor_table_in_runs(&self->table, &self->sought, slots, (size_t)count, &in_runs)) {
        return PyErr_NoMemory();
    }
    return PyFloat_FromDouble(in_runs ? (double)in_runs / (double)self->sought.count : 0);
}

static PyMethodDef table_methods[] = {
    {"put", (PyCFunction)table_put, METH_VARARGS,
     "put($self, slot, buffer, /)\n--\n\n"
     "The buffer's anchors are from now on those of the slot, and it owns each of them."},
    {"put_sought", (PyCFunction)table_put_sought, METH_VARARGS,
     "put_sought($self, slot, /)\n--\n\n"
     "What is sought are from now on the anchors of the slot, and nothing is sought any more."},
    {"forget", (PyCFunction)table_forget, METH_VARARGS,
     "forget($self, slot, /)\n--\n\nThe slot has no anchors any more."},
    {"seek", (PyCFunction)table_seek, METH_VARARGS,
     "seek($self, buffer, /)\n--\n\n"
     "The buffer's anchors are from now on what is sought; how many it has."},
    {"rank", (PyCFunction)table_rank, METH_VARARGS,
     "rank($self, least, least_left, least_all, /)\n--\n\n"
     "([(slot, share)], shift): the slots, at most 4, that have most of what is sought, each with\n"
     "the share of it that those before it have not; and how much further on the first has it."},
    {"runs", (PyCFunction)table_runs, METH_VARARGS,
     "runs($self, slots, /)\n--\n\n"
     "The share of what is sought that these slots, at most 4, have about as far on as what was\n"
     "found before it, each in the first slot that has it."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot table_slots[] = {
    {Py_tp_doc, "AnchorTable(slots, /)\n--\n\n"
                "The anchors of up to so many bases. See castore.stream.anchor_table."},
    {Py_tp_new, table_new},
    {Py_tp_dealloc, table_dealloc},
    {Py_tp_methods, table_methods},
    {0, NULL},
};

static PyType_Spec table_spec = {
    .name = "castore._native.AnchorTable",
    .basicsize = sizeof(AnchorTable),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = table_slots,
};

/* ---- the functions -------------------------------------------------------------------------- */

static PyMethodDef functions[] = {
    {"anchors", anchors, METH_VARARGS,
     "anchors(buffer, /)\n--\n\n"
     "The hashes of the buffer's anchors, each with the last position where it is."},
    {NULL, NULL, 0, NULL},
};

int similarity_add(PyObject *module)
{
    anchors_prepare();
    PyObject *table = PyType_FromSpec(&table_spec);
    if (table == NULL) {
        return -1;
    }
    int result = PyModule_AddObjectRef(module, "AnchorTable", table);
    Py_DECREF(table);
    return result == 0 ? PyModule_AddFunctions(module, functions) : result;
}
