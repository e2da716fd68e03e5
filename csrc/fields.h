// What torch knows about a plain tensor and DLPack does not say.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

// The storage is the block of memory that a tensor is a part of. `negative`: torch changes the sign of the numbers in memory
// when it reads and writes them. An example is x.conj().imag.
struct Fields {
    bool negative;
    uintptr_t begin;
    int64_t bytes;
};

// Finds how to read the fields. torch: the module.
void find_fields(const pybind11::object& torch);

// Asks the processor for the memory that read_fields will read. level 0: of the Python object; then 1: of the tensor, and
// 2: of its storage, each a little later, because the address of one is in the memory of the one before. `object` must be a
// tensor for the levels 1 and 2. Does nothing if the places of the fields are unknown.
void fetch_fields(PyObject* object, int level);

// False if the tensor has no storage.
bool read_fields(PyObject* tensor, Fields* out);
