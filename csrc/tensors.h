// What is read off Python's lists of tensors, in one pass.
#pragma once

#include <pybind11/pybind11.h>

// Finds torch's table of functions; false if it has none, and then the other two return None.
bool use_torch(pybind11::object torch);

// For K lists of N gradients: a list of N, the first gradient of every parameter or None, if all are plain dense tensors
// on one device, alike for all tasks; else None.
pybind11::object uniform(const pybind11::list& rows);

// For the first gradient of every parameter: whether `row` has a contiguous tensor like it, or, with `moments`, one of the
// dtype of its moments; None where it is None, if `optional`. False says only that it takes a closer look.
bool matches(const pybind11::list& first, const pybind11::list& row, bool optional, bool moments);

// The fields of cats.table.Flat, pointers as bytes; None if an entry is not a plain dense tensor.
pybind11::object flatten(const pybind11::list& grads, const pybind11::list& others, int64_t vector_bytes);
