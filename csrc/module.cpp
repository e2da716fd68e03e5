// The module cats._native. It takes raw addresses and is built without torch. It is called by cats/ops/layout.py, by the
// backends native and cuda and, for its memory probe, by bench/common/roofline.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "kernels.h"
#include "tensors.h"
#include "vector.h"

namespace py = pybind11;
using namespace cats;

namespace {

double* doubles(uintptr_t address) { return reinterpret_cast<double*>(address); }

OwnedWork make_work(const py::buffer& pointers, std::vector<int64_t> numels, std::vector<int64_t> groups, int64_t tasks, int64_t others,
                    int type, int threads) {
    const py::buffer_info info = pointers.request();
    if (info.size * info.itemsize != int64_t(numels.size()) * (tasks + others) * 8 || numels.size() != groups.size())
        throw py::value_error("pointers, numels and groups do not fit together");
    const int64_t* words = static_cast<const int64_t*>(info.ptr);
    OwnedWork owned;
    owned.addresses.assign(words, words + int64_t(numels.size()) * (tasks + others));
    owned.work = {owned.addresses.data(), std::move(numels), std::move(groups), tasks, others, static_cast<Type>(type), threads};
    return owned;
}

}  // namespace

#ifdef CATS_CUDA
void bind_cuda(py::module_& m);
#endif

PYBIND11_MODULE(_native, m) {
    m.doc() = "The compiled kernels of cats.ops: addresses of tensors in, sums out. Called by cats.ops.layout and cats.ops.backends.";
    py::class_<OwnedWork>(m, "Work").def(py::init(&make_work));
    bind_tensors(m);
    m.def("use_openmp", [](const std::string& library) { return use_openmp(library.c_str()); });
    py::enum_<Instructions>(m, "Instructions")
        .value("baseline", Instructions::baseline)
        .value("AVX2", Instructions::avx2)
        .value("AVX512", Instructions::avx512);
    m.def("instructions", &instructions);
    m.def("use_instructions", &use_instructions);
    m.def("combine", [](const OwnedWork& work, int64_t rows, uintptr_t weights, uintptr_t dots, uintptr_t sqnorms) {
        py::gil_scoped_release release;
        combine(work.work, rows, doubles(weights), doubles(dots), doubles(sqnorms));
    });
    m.def("dots", [](const OwnedWork& work, bool direction_is_wide, uintptr_t result) {
        py::gil_scoped_release release;
        dots(work.work, direction_is_wide, doubles(result));
    });
    m.def("gram", [](const OwnedWork& work, uintptr_t result) {
        py::gil_scoped_release release;
        gram(work.work, doubles(result));
    });
    m.def("combine_adamw", [](const OwnedWork& work, uintptr_t weights, double step_size, double decay, double beta1, double beta2,
                              double eps, double correction, double grad_scale, bool skip, uintptr_t dots, uintptr_t sqnorms) {
        py::gil_scoped_release release;
        combine_adamw(work.work, doubles(weights), {step_size, decay, beta1, beta2, eps, correction, grad_scale, skip},
                      doubles(dots), doubles(sqnorms));
    });
    m.def("graddrop", [](const OwnedWork& work, uintptr_t leak, int64_t seed, int64_t step, const std::vector<int64_t>& positions) {
        if (positions.size() != work.work.numels.size()) throw py::value_error("one position per parameter is needed");
        py::gil_scoped_release release;
        graddrop(work.work, doubles(leak), {uint64_t(seed), uint64_t(step), positions.data()});
    });
    m.def("row_dots", [](uintptr_t x, int64_t x_stride, uintptr_t y, int64_t y_stride, uintptr_t owners, int64_t count, int64_t width,
                         int64_t tasks, int type, bool y_is_float, int threads, uintptr_t result) {
        py::gil_scoped_release release;
        row_dots({reinterpret_cast<const void*>(x), reinterpret_cast<const void*>(y), x_stride, y_stride,
                  reinterpret_cast<const int64_t*>(owners), count, width, tasks, static_cast<Type>(type), y_is_float, threads},
                 doubles(result));
    });
    m.def("first_outside", [](uintptr_t owners, int64_t count, int64_t tasks) {
        return first_outside(reinterpret_cast<const int64_t*>(owners), count, tasks);
    });
    m.def("traffic", [](uintptr_t source, int64_t source_bytes, uintptr_t target, int64_t target_bytes, bool in_place, int threads) {
        py::gil_scoped_release release;
        traffic(reinterpret_cast<const char*>(source), source_bytes, reinterpret_cast<char*>(target), target_bytes, in_place, threads);
    });
#ifdef CATS_CUDA
    m.attr("cuda") = true;
    bind_cuda(m);
#else
    m.attr("cuda") = false;
#endif
}
