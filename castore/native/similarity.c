#define PY_SSIZE_T_CLEAN
#include "similarity.h"

#include "anchor_table.h"
#include "anchors.h"
#include "gil.h"

#include <stdbool.h>
#include <stdlib.h>

/* ---- anchors -------------------------------------------------------------------------------- */

enum {
    QUICK_BYTES_MAX = 256 << 10, /* of a chunk, looked through with the GIL, in 40 us */
};

typedef struct {
    PyObject_HEAD
    struct anchor_set set;
} Anchors;

static PyTypeObject *anchors_type;

static PyObject *anchors_new(PyTypeObject *type, PyObject *arguments, PyObject *Py_UNUSED(keywords))
{
    Py_buffer buffer;
    if (!PyArg_ParseTuple(arguments, "y*:Anchors", &buffer)) {
        return NULL;
    }
    struct anchor_set set;
    PyThreadState *state = let_go_of_gil(buffer.len > QUICK_BYTES_MAX);
    const bool done = anchor_set_fill(&set, buffer.buf, (size_t)buffer.len);
    take_gil_back(state);
    PyBuffer_Release(&buffer);
    if (!done) {
        return PyErr_NoMemory();
    }
    Anchors *self = (Anchors *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (self == NULL) {
        anchor_set_free(&set);
        return NULL;
    }
    self->set = set;
    return (PyObject *)self;
}

static void anchors_dealloc(Anchors *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    anchor_set_free(&self->set);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static Py_ssize_t anchors_length(Anchors *self)
{
    return (Py_ssize_t)self->set.count;
}

static int put_position(PyObject *positions, const struct anchor *anchor)
{
    PyObject *hash = PyLong_FromUnsignedLongLong(anchor->hash);
    PyObject *position = PyLong_FromSize_t(anchor->position);
    int result = -1;
    if (hash != NULL && position != NULL) {
        result = PyDict_SetItem(positions, hash, position);
    }
    Py_XDECREF(hash);
    Py_XDECREF(position);
    return result;
}

static PyObject *anchors_positions(Anchors *self, PyObject *Py_UNUSED(arguments))
{
    PyObject *positions = PyDict_New();
    for (size_t i = 0; positions != NULL && i < self->set.count; i++) {
        if (put_position(positions, &self->set.anchors[i]) != 0) {
            Py_CLEAR(positions);
        }
    }
    return positions;
}

static PyMethodDef anchors_methods[] = {
    {"positions", (PyCFunction)anchors_positions, METH_NOARGS,
     "positions($self, /)\n--\n\nTheir hashes, each with the last position where it is."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot anchors_slots[] = {
    {Py_tp_doc, "Anchors(buffer, /)\n--\n\n"
                "The anchors of the buffer as it is now. See castore.stream.anchors."},
    {Py_tp_new, anchors_new},
    {Py_tp_dealloc, anchors_dealloc},
    {Py_tp_methods, anchors_methods},
    {Py_sq_length, anchors_length},
    {0, NULL},
};

static PyType_Spec anchors_spec = {
    .name = "castore._native.Anchors",
    .basicsize = sizeof(Anchors),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = anchors_slots,
};

/* ---- tables of anchors ----------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    struct anchor_table table;
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

static PyObject *table_put(AnchorTable *self, PyObject *arguments)
{
    Py_ssize_t slot;
    Anchors *anchors;
    if (!PyArg_ParseTuple(arguments, "nO!:put", &slot, anchors_type, &anchors) ||
        !is_slot(self, slot)) {
        return NULL;
    }
    if (!anchor_table_put(&self->table, (size_t)slot, &anchors->set)) {
        return PyErr_NoMemory();
    }
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

static PyObject *table_rank(AnchorTable *self, PyObject *arguments)
{
    Anchors *sought;
    struct shares shares;
    struct ranking ranking;
    if (!PyArg_ParseTuple(arguments, "O!ddd:rank", anchors_type, &sought, &shares.least,
                          &shares.least_left, &shares.least_all)) {
        return NULL;
    }
    if (!anchor_table_rank(&self->table, &sought->set, shares, &ranking)) {
        return PyErr_NoMemory();
    }
    PyObject *ranked = PyList_New(0);
    for (size_t i = 0; ranked != NULL && i < ranking.count; i++) {
        PyObject *each = Py_BuildValue("nd", (Py_ssize_t)ranking.slots[i],
                                       (double)ranking.gains[i] / (double)sought->set.count);
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
    Anchors *sought;
    PyObject *given;
    if (!PyArg_ParseTuple(arguments, "O!O:runs", anchors_type, &sought, &given)) {
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
    if (!anchor_table_in_runs(&self->table, &sought->set, slots, (size_t)count, &in_runs)) {
        return PyErr_NoMemory();
    }
    return PyFloat_FromDouble(in_runs ? (double)in_runs / (double)sought->set.count : 0);
}

static PyMethodDef table_methods[] = {
    {"put", (PyCFunction)table_put, METH_VARARGS,
     "put($self, slot, anchors, /)\n--\n\n"
     "They are from now on those of the slot, and it owns each of them."},
    {"forget", (PyCFunction)table_forget, METH_VARARGS,
     "forget($self, slot, /)\n--\n\nThe slot has no anchors any more."},
    {"rank", (PyCFunction)table_rank, METH_VARARGS,
     "rank($self, sought, least, least_left, least_all, /)\n--\n\n"
     "([(slot, share)], shift): the slots, at most 4, that have most of what is sought, each with\n"
     "the share of it that those before it have not; and how much further on the first has it."},
    {"runs", (PyCFunction)table_runs, METH_VARARGS,
     "runs($self, sought, slots, /)\n--\n\n"
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

/* ---- the types ------------------------------------------------------------------------------ */

int similarity_add(PyObject *module)
{
    anchors_prepare();
    if (anchors_type == NULL) { /* one, of however many instances of the module */
        anchors_type = (PyTypeObject *)PyType_FromSpec(&anchors_spec);
    }
    if (anchors_type == NULL ||
        PyModule_AddObjectRef(module, "Anchors", (PyObject *)anchors_type) != 0) {
        return -1;
    }
    PyObject *table = PyType_FromSpec(&table_spec);
    const int result = table == NULL ? -1 : PyModule_AddObjectRef(module, "AnchorTable", table);
    Py_XDECREF(table);
    return result;
}
