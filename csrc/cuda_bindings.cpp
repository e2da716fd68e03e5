// The CUDA kernels' launchers as functions of cats._native. Only cats/ops/backends/cuda.py calls them. A launch waits when the
// device's queue is full, so other Python threads run meanwhile.
#include <pybind11/pybind11.h>

#include "cuda.h"

using Release = pybind11::call_guard<pybind11::gil_scoped_release>;

void bind_cuda(pybind11::module_& m) {
    m.def("cuda_combine", &cuda_combine, Release());
    m.def("cuda_dots", &cuda_dots, Release());
    m.def("cuda_prepare_adamw", &cuda_prepare_adamw, Release());
    m.def("cuda_combine_adamw", &cuda_combine_adamw, Release());
    m.def("cuda_gram", &cuda_gram, Release());
    m.def("cuda_graddrop", &cuda_graddrop, Release());
    m.def("cuda_reduce", &cuda_reduce, Release());
    m.def("cuda_reduce_gram", &cuda_reduce_gram, Release());
    m.def("cuda_row_dots", &cuda_row_dots, Release());
    m.def("cuda_traffic", &cuda_traffic, pybind11::arg("source"), pybind11::arg("source_bytes"),
          pybind11::arg("target"), pybind11::arg("target_bytes"), pybind11::arg("stream"), Release());
    m.def("cuda_write", &cuda_write, Release());
    m.def("cuda_toolkit", &cuda_toolkit);
}
