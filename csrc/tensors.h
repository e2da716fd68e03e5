// Reads Python's lists of tensors in one pass.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "work.h"

// A Work and the addresses it points to.
struct OwnedWork {
    std::vector<int64_t> addresses;
    cats::Work work;
    OwnedWork() = default;
    OwnedWork(OwnedWork&&) = default;  // does not move the addresses in memory
};

// The functions of cats._native that look at tensors: use_torch, uniform, matches, shared, flatten, works, row_matrices.
void bind_tensors(pybind11::module_& m);
