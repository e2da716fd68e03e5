// The functions through which the CUDA kernels use the device. tests/ops/cuda_emulator.h defines the same functions for a
// host compiler, so the kernels can be run and tested without a GPU.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define CATS_DEVICE __device__ __forceinline__

namespace cats {

inline void check(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// shared: bytes, at most 99 KB, which every chip has.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t shared, int64_t stream,
            Arguments... arguments) {
    if (shared > 48 * 1024)  // has to be asked for
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)));
    kernel<<<grid, threads, shared, reinterpret_cast<cudaStream_t>(stream)>>>(arguments...);
    check(cudaGetLastError());
}

CATS_DEVICE char* shared_memory() {
    extern __shared__ __align__(16) char memory[];
    return memory;
}

CATS_DEVICE void barrier() { __syncthreads(); }

template <class T> CATS_DEVICE T shuffle_xor(T value, int mask) { return __shfl_xor_sync(~0u, value, mask); }

CATS_DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
CATS_DEVICE uint32_t as_bits(float value) { return __float_as_uint(value); }

CATS_DEVICE float half_to_float(uint32_t bits) { return __half2float(__ushort_as_half(uint16_t(bits))); }
CATS_DEVICE uint16_t float_to_half(float value) { return __half_as_ushort(__float2half_rn(value)); }
CATS_DEVICE uint16_t float_to_bfloat16(float value) { return __bfloat16_as_ushort(__float2bfloat16_rn(value)); }

// Loads 16 bytes that are read once, so they need not stay in the caches.
CATS_DEVICE uint4 load_once(const uint4* address) { return __ldcs(address); }

// Loads what no thread of this launch writes.
CATS_DEVICE uint4 load_constant(const uint4* address) { return __ldg(address); }

// Starts a copy of 16 bytes to shared memory, which needs no registers. The copies that a thread has started since its last
// call of end_of_copies form a group.
CATS_DEVICE void start_copy(uint4* shared, const uint4* address) {
    // 256 bytes are brought to the second-level cache: the tile after this one is there when its copies start.
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(uint32_t(__cvta_generic_to_shared(shared))),
                 "l"(__cvta_generic_to_global(address))
                 : "memory");
}
CATS_DEVICE void end_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until only the last COUNT groups of this thread may be unfinished. Other threads see the copies after a barrier.
template <int COUNT> CATS_DEVICE void wait_for_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(COUNT) : "memory"); }

// Loads four matrices of 8 rows with 16 bytes. Lane l says where row l % 8 of matrix l / 8 is, in shared memory. Lane (g, t)
// = (l / 4, l % 4) gets word t of row g of each matrix: the operands of mma.
CATS_DEVICE void load_matrices(uint32_t (&words)[4], const uint4* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(uint32_t(__cvta_generic_to_shared(row)))
                 : "memory");
}

// c += a b on the matrix units: a is 16 x k, b is k x 8, c is 16 x 8. Which lane holds which element: PTX ISA, "Matrix
// fragments for mma".
CATS_DEVICE void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
CATS_DEVICE void mma_bfloat16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
CATS_DEVICE void mma_half(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace cats

#else
#include "cuda_emulator.h"
#endif

namespace cats {

constexpr int WARP = 32;
constexpr int MAX_TASKS = 128;
// The number of consecutive float32 additions per lane; then the sum is added to a double. For numbers of one sign, 64
// additions have an error of 1e-6.
constexpr int CHAIN = 64;

// Element types, numbered as in TYPES of cats/ops/layout.py.
struct Float32 {
    static constexpr int NUMBER = 0;
    static constexpr int WIDTH = 4;  // elements in 16 bytes
    typedef float Scalar;  // the type of the arithmetic
    typedef float Element;
};
struct BFloat16 {
    static constexpr int NUMBER = 1;
    static constexpr int WIDTH = 8;
    typedef float Scalar;
    typedef uint16_t Element;
};
struct Float16 {
    static constexpr int NUMBER = 2;
    static constexpr int WIDTH = 8;
    typedef float Scalar;
    typedef uint16_t Element;
};
struct Float64 {
    static constexpr int NUMBER = 3;
    static constexpr int WIDTH = 2;
    typedef double Scalar;
    typedef double Element;
};

// Calls f with an object of the element type that has this number.
template <class F> void with_type(int64_t number, F f) {
    switch (number) {
        case Float32::NUMBER: return f(Float32());
        case BFloat16::NUMBER: return f(BFloat16());
        case Float16::NUMBER: return f(Float16());
        case Float64::NUMBER: return f(Float64());
    }
    throw std::invalid_argument("there is no type with this number");
}

CATS_DEVICE float fused(float a, float b, float c) { return fmaf(a, b, c); }
CATS_DEVICE double fused(double a, double b, double c) { return fma(a, b, c); }

// Element e of 16 bytes, converted to the type of the arithmetic. e must be a compile-time constant.
CATS_DEVICE uint32_t word(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }
template <class T> struct Elements;
template <> struct Elements<Float32> {
    static CATS_DEVICE float get(const uint4& v, int e) { return as_float(word(v, e)); }
    static CATS_DEVICE float wide(float element) { return element; }
    static CATS_DEVICE float narrow(float value) { return value; }
};
template <> struct Elements<BFloat16> {
    static CATS_DEVICE float get(const uint4& v, int e) {
        uint32_t pair = word(v, e / 2);
        return as_float(e % 2 ? pair & 0xffff0000u : pair << 16);
    }
    static CATS_DEVICE float wide(uint16_t element) { return as_float(uint32_t(element) << 16); }
    static CATS_DEVICE uint16_t narrow(float value) { return float_to_bfloat16(value); }
};
template <> struct Elements<Float16> {
    static CATS_DEVICE float get(const uint4& v, int e) {
        uint32_t pair = word(v, e / 2);
        return half_to_float(e % 2 ? pair >> 16 : pair & 0xffffu);
    }
    static CATS_DEVICE float wide(uint16_t element) { return half_to_float(element); }
    static CATS_DEVICE uint16_t narrow(float value) { return float_to_half(value); }
};
template <> struct Elements<Float64> {
    static CATS_DEVICE double get(const uint4& v, int e) {
        union {
            uint4 raw;
            double values[2];
        } u;
        u.raw = v;
        return u.values[e];
    }
    static CATS_DEVICE double wide(double element) { return element; }
    static CATS_DEVICE double narrow(double value) { return value; }
};

// The address of an element; 0 if the address of the tensor is 0.
template <class T> CATS_DEVICE int64_t advance(int64_t address, int64_t elements) {
    return address ? address + elements * int64_t(sizeof(typename T::Element)) : 0;
}

// Elements of a chunk: `valid` elements (0 ... COUNT) that begin at `index`. `whole`: all are valid and the address is a
// multiple of 16 bytes. Chunks have fewer than 2^31 elements; the position of a chunk in its parameter has 64 bits.
struct Place {
    int index, valid;
    bool whole;
};

template <int COUNT> CATS_DEVICE Place place(int index, int count, bool aligned) {
    const int rest = count - index, valid = rest >= COUNT ? COUNT : rest > 0 ? rest : 0;
    return {index, valid, aligned && valid == COUNT};
}

// 16 bytes of these elements; zero for those that are not valid.
template <class T> CATS_DEVICE uint4 load_part(int64_t address, const Place& at) {
    typedef typename T::Element Element;
    union {
        uint4 raw;
        Element elements[T::WIDTH];
    } u;
    u.raw = make_uint4(0, 0, 0, 0);
    const Element* elements = reinterpret_cast<const Element*>(address) + at.index;
#pragma unroll
    for (int e = 0; e < T::WIDTH; ++e)
        if (e < at.valid) u.elements[e] = elements[e];
    return u.raw;
}

// 16 bytes of each of COUNT gradients, zero where the address is 0. All loads are started before the first is used.
template <class T, bool ONCE, int COUNT>
CATS_DEVICE void load_gradients(const int64_t* addresses, const Place& at, uint4 (&grads)[COUNT]) {
    if (at.whole) {
#pragma unroll
        for (int n = 0; n < COUNT; ++n) {
            const auto address = reinterpret_cast<const uint4*>(
                reinterpret_cast<const typename T::Element*>(addresses[n]) + at.index);
            grads[n] = make_uint4(0, 0, 0, 0);
            if (addresses[n]) grads[n] = ONCE ? load_once(address) : load_constant(address);
        }
    } else {
#pragma unroll
        for (int n = 0; n < COUNT; ++n) {
            grads[n] = make_uint4(0, 0, 0, 0);
            if (addresses[n]) grads[n] = load_part<T>(addresses[n], at);
        }
    }
}

// COUNT times 16 bytes of a tensor that is not a gradient; zero for elements that are not valid.
template <class T, int COUNT> CATS_DEVICE void load_raw(int64_t address, const Place& at, uint4 (&raw)[COUNT]) {
    if (at.whole) {
        const auto elements = reinterpret_cast<const typename T::Element*>(address) + at.index;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) raw[i] = load_once(reinterpret_cast<const uint4*>(elements) + i);
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; ++i)
            raw[i] = load_part<T>(address, {at.index + i * T::WIDTH, at.valid - i * T::WIDTH, false});
    }
}

// COUNT numbers of a tensor that is not a gradient; zero for elements that are not valid.
template <class T, int COUNT, class S> CATS_DEVICE void load(int64_t address, const Place& at, S (&values)[COUNT]) {
    typedef typename T::Element Element;
    const Element* elements = reinterpret_cast<const Element*>(address) + at.index;
    if (at.whole && COUNT >= T::WIDTH) {
#pragma unroll
        for (int i = 0; i < COUNT / T::WIDTH; ++i) {
            uint4 raw = reinterpret_cast<const uint4*>(elements)[i];
#pragma unroll
            for (int e = 0; e < T::WIDTH; ++e) values[i * T::WIDTH + e] = Elements<T>::get(raw, e);
        }
    } else {
#pragma unroll
        for (int e = 0; e < COUNT; ++e) values[e] = e < at.valid ? Elements<T>::wide(elements[e]) : S(0);
    }
}

template <class T, int COUNT, class S> CATS_DEVICE void store(int64_t address, const Place& at, const S (&values)[COUNT]) {
    typedef typename T::Element Element;
    Element* elements = reinterpret_cast<Element*>(address) + at.index;
    if (at.whole) {
#pragma unroll
        for (int i = 0; i < COUNT / T::WIDTH; ++i) {
            union {
                uint4 raw;
                Element elements[T::WIDTH];
            } u;
#pragma unroll
            for (int e = 0; e < T::WIDTH; ++e) u.elements[e] = Elements<T>::narrow(values[i * T::WIDTH + e]);
            reinterpret_cast<uint4*>(elements)[i] = u.raw;
        }
    } else {
#pragma unroll
        for (int e = 0; e < COUNT; ++e)
            if (e < at.valid) elements[e] = Elements<T>::narrow(values[e]);
    }
}

// The sums over a warp of COUNT values per lane (COUNT is a power of two), with COUNT - 1 + log2(32 / COUNT) exchanges: at
// every step half of the lanes continue with one half of the values, the other half with the rest. Lane l returns sum
// number l / (32 / COUNT). The order of the additions does not depend on COUNT.
template <int COUNT, class S> CATS_DEVICE S warp_sums(S (&values)[COUNT]) {
    const int lane = threadIdx.x % WARP;
    int offset = WARP / 2;
#pragma unroll
    for (int half = COUNT / 2; half > 0; half /= 2, offset /= 2) {
        const bool upper = lane & offset;
#pragma unroll
        for (int i = 0; i < half; ++i) {
            S send = upper ? values[i] : values[i + half];
            S stay = upper ? values[i + half] : values[i];
            values[i] = stay + shuffle_xor(send, offset);
        }
    }
    for (; offset > 0; offset /= 2) values[0] += shuffle_xor(values[0], offset);
    return values[0];
}

}  // namespace cats
