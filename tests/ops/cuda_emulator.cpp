// csrc/*.cu for a host compiler. The module cuda_emulator has the functions that cats/ops/backends/cuda.py calls, for
// addresses of ordinary memory, and kernels with mistakes that the emulator must find.
#include <pybind11/pybind11.h>

#include "combine.cu"
#include "combine_half.cu"
#include "cuda_bindings.cpp"
#include "graddrop.cu"
#include "gram.cu"
#include "reduce.cu"
#include "row_dots.cu"
#include "write.cu"

// target[i] = i of the next thread in the block. Without a barrier it is whatever the shared memory holds.
static void neighbour_kernel(int64_t* target, bool with_barrier) {
    int64_t* shared = reinterpret_cast<int64_t*>(cats::shared_memory());
    shared[threadIdx.x] = threadIdx.x;
    if (with_barrier) cats::barrier();
    target[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}

// Copies 16 bytes per thread through shared memory.
static void copied_kernel(const uint4* source, uint4* target, bool waits) {
    uint4* shared = reinterpret_cast<uint4*>(cats::shared_memory());
    cats::start_copy(shared + threadIdx.x, source + threadIdx.x);
    cats::end_of_copies();
    if (waits) cats::wait_for_copies<0>();
    cats::barrier();
    target[threadIdx.x] = shared[threadIdx.x];
}

static void divergent_kernel() {
    if (threadIdx.x > 0) cats::barrier();
}

PYBIND11_MODULE(cuda_emulator, m) {
    bind_cuda(m);
    m.attr("cuda") = true;
    m.def("set_order", [](int order) { cats::emulated_order = cats::Order(order); });
    m.def("neighbour", [](int64_t target, bool with_barrier) {
        cats::launch(neighbour_kernel, dim3(1), 64, 64 * 8, 0, reinterpret_cast<int64_t*>(target), with_barrier);
    });
    m.def("copied", [](int64_t source, int64_t target, bool waits) {
        cats::launch(copied_kernel, dim3(1), 32, 32 * 16, 0, reinterpret_cast<const uint4*>(source),
                     reinterpret_cast<uint4*>(target), waits);
    });
    m.def("divergent", [] { cats::launch(divergent_kernel, dim3(1), 64, 0, 0); });
}
