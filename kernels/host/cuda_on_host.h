// CUDA's names for a CPU: included before everything else when a .cu file is compiled as C++17 for the executor.
//
// What CUDA C spells in its own way and C++ can't express (dynamic shared memory, PTX) is in ../intrinsics.cuh, in two versions.
#pragma once

// Not <cmath>, which leaves C's functions of double outside of std: CUDA's compute floats as floats.
#include <math.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <utility>

#include "executor.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __align__(n) __attribute__((aligned(n)))
// One for the whole block, and filled again for each: the thread-local variables of a library lie together in one segment, which
// the executor finds, fills and swaps. Only kernels' shared variables may be thread-local.
#define __shared__ static thread_local

// The executor reports a failed assert with block and thread; the C library would end the process.
#undef assert
#define assert(condition) \
    ((condition) ? void() : host::fail("assert", "assert(%s) failed (%s:%d)", #condition, __builtin_FILE(), __builtin_LINE()))
#define __trap() host::fail("assert", "__trap() (%s:%d)", __builtin_FILE(), __builtin_LINE())

using uint3 = host::Index;
extern host::Index threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

// ---- Barriers and warp collectives. `file` and `line` are those of the call. ------------------------------------------

#define HOST_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(HOST_SITE) { host::barrier(host::Barrier::sync, 1, file, line); }
inline int __syncthreads_count(int predicate, HOST_SITE) { return host::barrier(host::Barrier::count, predicate, file, line); }
inline int __syncthreads_and(int predicate, HOST_SITE) { return host::barrier(host::Barrier::all, predicate, file, line); }
inline int __syncthreads_or(int predicate, HOST_SITE) { return host::barrier(host::Barrier::any, predicate, file, line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, HOST_SITE) {
    host::collective(host::Collective::syncwarp, mask, 0, 0, 32, file, line);
}

namespace host {

template <class T>
T shuffle(Collective kind, unsigned mask, T value, int lane, int width, const char* file, int line) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "a shuffle moves values of up to 8 bytes");
    uint64_t word = 0;
    memcpy(&word, &value, sizeof value);
    word = collective(kind, mask, word, lane, width, file, line);
    memcpy(&value, &word, sizeof value);
    return value;
}

}  // namespace host

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, HOST_SITE) {
    return host::shuffle(host::Collective::shuffle, mask, value, lane, width, file, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, HOST_SITE) {
    return host::shuffle(host::Collective::shuffle_up, mask, value, delta, width, file, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, HOST_SITE) {
    return host::shuffle(host::Collective::shuffle_down, mask, value, delta, width, file, line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, HOST_SITE) {
    return host::shuffle(host::Collective::shuffle_xor, mask, value, lane_mask, width, file, line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, HOST_SITE) {
    return host::collective(host::Collective::ballot, mask, predicate != 0, 0, 32, file, line);
}
inline int __any_sync(unsigned mask, int predicate, HOST_SITE) { return __ballot_sync(mask, predicate, file, line) != 0; }
inline int __all_sync(unsigned mask, int predicate, HOST_SITE) { return __ballot_sync(mask, !predicate, file, line) == 0; }
template <class T>
unsigned __match_any_sync(unsigned mask, T value, HOST_SITE) {
    uint64_t word = 0;
    static_assert(sizeof value <= sizeof word);
    memcpy(&word, &value, sizeof value);
    return host::collective(host::Collective::match, mask, word, 0, 32, file, line);
}
// Fibers run one at a time, so that no other lane is ever active here: code that relies on more is wrong on a GPU too.
inline unsigned __activemask() { return host::active_mask(); }

// One OS thread runs all fibers: its memory order is stronger than any fence. A fence orders nothing for the recorder of
// conflicts either, which knows only arrive() and await() between blocks.
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- Atomics and loads and stores that name a cache ------------------------------------------------------------------
// The recorder hears of them from note_access, not from the compiler, hence no_sanitize. It is told the place that these functions
// return to, which lies in the kernel because those that call them are always inlined.

#define HOST_UNRECORDED __attribute__((noinline, no_sanitize("thread")))
#define HOST_INLINE inline __attribute__((always_inline))

template <class T>
HOST_UNRECORDED T host_load(const T* address, host::Access access) {
    host::note_access(address, sizeof *address, false, access, __builtin_return_address(0));
    return *address;
}
template <class T>
HOST_UNRECORDED void host_store(T* address, T value, host::Access access) {
    host::note_access(address, sizeof *address, true, access, __builtin_return_address(0));
    host::note_progress();
    *address = value;
}
template <class T, class F>
HOST_UNRECORDED T host_update(T* address, F next) {
    host::note_access(address, sizeof *address, true, host::Access::atomic, __builtin_return_address(0));
    const T before = *address;
    *address = next(before);
    if (memcmp(address, &before, sizeof before) != 0) host::note_progress();
    return before;
}

template <class T> HOST_INLINE T atomicAdd(T* a, std::common_type_t<T> v) { return host_update(a, [=](T x) { return T(x + v); }); }
template <class T> HOST_INLINE T atomicSub(T* a, std::common_type_t<T> v) { return host_update(a, [=](T x) { return T(x - v); }); }
template <class T> HOST_INLINE T atomicMax(T* a, std::common_type_t<T> v) { return host_update(a, [=](T x) { return x < v ? v : x; }); }
template <class T> HOST_INLINE T atomicMin(T* a, std::common_type_t<T> v) { return host_update(a, [=](T x) { return v < x ? v : x; }); }
template <class T> HOST_INLINE T atomicAnd(T* a, std::common_type_t<T> v) { return host_update(a, [=](T x) { return T(x & v); }); }
template <class T> HOST_INLINE T atomicOr(T* a, std::common_type_t<T> v) { return host_update(a, [=](T x) { return T(x | v); }); }
template <class T> HOST_INLINE T atomicExch(T* a, std::common_type_t<T> v) { return host_update(a, [=](T) { return v; }); }
template <class T> HOST_INLINE T atomicCAS(T* a, std::common_type_t<T> expected, std::common_type_t<T> v) {
    return host_update(a, [=](T x) { return x == expected ? v : x; });
}

template <class T> HOST_INLINE T __ldg(const T* address) { return host_load(address, host::Access::read_only); }
template <class T> HOST_INLINE T __ldcg(const T* address) { return host_load(address, host::Access::published); }
template <class T> HOST_INLINE void __stcg(T* address, std::common_type_t<T> value) { host_store(address, value, host::Access::published); }

// ---- Numbers --------------------------------------------------------------------------------------------------------

namespace host {

template <class To, class From>
To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

}  // namespace host

namespace host {

template <class T>
inline constexpr bool is_floating = std::is_floating_point_v<T>;

}  // namespace host

inline int __float_as_int(float x) { return host::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return host::bits<unsigned>(x); }
inline float __int_as_float(int x) { return host::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return host::bits<float>(x); }
inline long long __double_as_longlong(double x) { return host::bits<long long>(x); }
inline double __longlong_as_double(long long x) { return host::bits<double>(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} * b) >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1) << (31 - i);
    return reversed;
}
static_assert(std::is_same_v<decltype(exp(0.0f) + tanh(0.0f) + log1p(0.0f) + sqrt(0.0f) + fabs(0.0f) + hypot(0.0f, 0.0f)), float>);
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
// Round to nearest without contraction, on a GPU; here no product and sum are ever contracted.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
using std::isinf;
using std::isnan;
using std::signbit;
template <class A, class B>
std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (host::is_floating<T>) {
        using std::fmin;
        return fmin(T(a), T(b));
    }
    return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B>
std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (host::is_floating<T>) {
        using std::fmax;
        return fmax(T(a), T(b));
    }
    return T(a) < T(b) ? T(b) : T(a);
}

// ---- From here on `float` and `double` may be the numbers of the counts build ------------------------------------------

#include "counts.h"

// ---- Vectors --------------------------------------------------------------------------------------------------------

#define HOST_VECTOR(T, name, alignment)                                              \
    struct alignas(2 * sizeof(T)) name##2 { T x, y; };                               \
    struct alignas(alignment) name##4 { T x, y, z, w; };                             \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                       \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
HOST_VECTOR(float, float, 16)
HOST_VECTOR(double, double, 16)
HOST_VECTOR(int, int, 16)
HOST_VECTOR(unsigned, uint, 16)
#undef HOST_VECTOR

// ---- Kernels in the library's table ------------------------------------------------------------------------------------

namespace host {

constexpr int parameters_capacity = 2048;

#if defined(CLUSTER_BLOCKS)
constexpr unsigned cluster_blocks = CLUSTER_BLOCKS;
#else
constexpr unsigned cluster_blocks = 1;
#endif

// A type as NumPy names it ("f4", "i8", "b1"); "V24" for a struct, and "any" for what a void pointer points to.
template <class T>
void append_type(char* text) {
    char* const end = text + strlen(text);
    const size_t room = parameters_capacity - (end - text);
    if constexpr (std::is_pointer_v<T>) {
        using Element = std::remove_pointer_t<T>;
        if constexpr (std::is_const_v<Element>) snprintf(end, room, "const ");
        append_type<std::remove_cv_t<Element>>(text);
        strncat(text, "*", room - strlen(end) - 1);
    } else if constexpr (std::is_void_v<T>) {
        snprintf(end, room, "any");
    } else {
        const char kind = std::is_same_v<T, bool> ? 'b' : is_floating<T> ? 'f' : !std::is_integral_v<T> ? 'V'
                                                                                        : std::is_signed_v<T> ? 'i' : 'u';
        snprintf(end, room, "%c%zu", kind, sizeof(T));
    }
}

template <class... P, size_t... I>
HOST_UNRECORDED void call_with(void (*function)(P...), void** arguments, std::index_sequence<I...>) {
    function(*static_cast<std::remove_reference_t<P>*>(arguments[I])...);
    (void)arguments;
}

template <class... P>
Kernel describe(const char* name, void (*function)(P...)) {
    static char parameters[parameters_capacity];  // one for each list of parameters
    parameters[0] = 0;
    int n = 0;
    ((n++ ? strncat(parameters, ",", 2) : parameters, append_type<std::remove_cv_t<P>>(parameters)), ...);
    return {name, parameters, reinterpret_cast<void (*)()>(function), [](void (*erased)(), void** arguments) {
                call_with(reinterpret_cast<void (*)(P...)>(erased), arguments, std::index_sequence_for<P...>());
            },
            cluster_blocks};
}

}  // namespace host
