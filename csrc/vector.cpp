#include "vector.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace cats {

Instructions instructions() {
#if defined(__x86_64__) && defined(__GNUC__)
    static const Instructions best = [] {
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
            return Instructions::avx512;
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Instructions::avx2;
        return Instructions::baseline;
    }();
    return best;
#else
    return Instructions::baseline;
#endif
}

void stream_copy(void* target, const void* source, size_t bytes) {
#if defined(__x86_64__)
    char* to = static_cast<char*>(target);
    const char* from = static_cast<const char*>(source);
    size_t head = size_t(-reinterpret_cast<uintptr_t>(to)) % 64;
    if (head > bytes) head = bytes;
    std::memcpy(to, from, head);
    to += head, from += head, bytes -= head;
    for (; bytes >= 64; to += 64, from += 64, bytes -= 64)
        for (int i = 0; i < 64; i += 16)
            _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                             _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
    std::memcpy(to, from, bytes);
#else
    std::memcpy(target, source, bytes);
#endif
}

}  // namespace cats
