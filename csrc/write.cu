// Copies words from the host's memory to the device as arguments of kernels.
#include <cstring>

#include "cuda.h"
#include "device.cuh"

namespace cats {

constexpr int FEW = 500;  // words: the arguments of a kernel may have 4 KB
// With CUDA 12.1 and driver 530, they may have 32,764 bytes. Every driver that runs code of CUDA 13 is newer than that.
constexpr int MANY = CUDART_VERSION < 13000 ? FEW : 4000;

template <int WORDS> struct WriteArguments {
    int64_t* target;
    int64_t count;
    int64_t words[WORDS];
};

template <int WORDS> __global__ void __launch_bounds__(256) write_kernel(const __grid_constant__ WriteArguments<WORDS> a) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < a.count) a.target[i] = a.words[i];
}

template <int WORDS> static void launch_write(int64_t* target, const int64_t* source, int64_t count, int64_t stream) {
    WriteArguments<WORDS> a;
    a.target = target;
    a.count = count;
    std::memcpy(a.words, source, size_t(count) * sizeof(int64_t));
    launch(write_kernel<WORDS>, dim3(unsigned((count + 255) / 256)), 256, 0, stream, a);
}

}  // namespace cats

void cuda_write(int64_t target, int64_t source, int64_t count, int64_t stream) {
    int64_t* to = reinterpret_cast<int64_t*>(target);
    const int64_t* from = reinterpret_cast<const int64_t*>(source);
    while (count > 0) {
        const int64_t part = count < cats::MANY ? count : cats::MANY;
        if (part <= cats::FEW)
            cats::launch_write<cats::FEW>(to, from, part, stream);
        else
            cats::launch_write<cats::MANY>(to, from, part, stream);
        to += part;
        from += part;
        count -= part;
    }
}

int64_t cuda_toolkit() { return CUDART_VERSION; }
