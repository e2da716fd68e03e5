// The CUDA kernels' launchers as functions of cats._native. Only cats/ops/backends/cuda.py calls them.
#include <pybind11/pybind11.h>

#include "cuda.h"

void bind_cuda(pybind11::module_& m) {
    m.def("cuda_combine", &cuda_combine);
    m.def("cuda_dots", &cuda_dots);
    m.def("cuda_prepare_adamw", &cuda_prepare_adamw);
    m.def("cuda_combine_adamw", &cuda_combine_adamw);
    m.def("cuda_gram", &cuda_gram);
    m.def("cuda_reduce", &cuda_reduce);
    m.def("cuda_reduce_gram", &cuda_reduce_gram);
    m.def("cuda_traffic", &cuda_traffic, pybind11::arg("source"), pybind11::arg("source_bytes"),
          pybind11::arg("target"), pybind11::arg("target_bytes"), pybind11::arg("stream"));
}
