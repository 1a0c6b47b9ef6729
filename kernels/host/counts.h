// What the "counts" build counts, and the numbers that kernels compute with in that build.
//
// The compiler tells the recorder of a kernel's loads and stores, but nothing tells it of arithmetic. So the names `float` and
// `double` stand for a class here, whose operators do the same arithmetic and report it. A product that is added to something is
// one multiply-add, as it is for nvcc. Results have the bits of the other builds, which do not contract either.
#pragma once

#include <cstdint>

// In the order of the rows in a report. Those before `spins` are instructions of a warp: what its lanes do together counts once.
#define HOST_COUNTERS(X)                                                                                                     \
    X(multiply_adds) X(arithmetic) X(divisions) X(special_functions) X(conversions)                                          \
    X(shuffles) X(votes) X(syncwarps) X(barriers)                                                                            \
    X(loads) X(read_only_loads) X(published_loads) X(stores) X(published_stores) X(atomics) X(cluster_loads)                  \
    X(shared_loads) X(shared_stores) X(spins)                                                                                \
    X(load_bytes) X(read_only_load_bytes) X(published_load_bytes) X(store_bytes) X(published_store_bytes) X(atomic_bytes)    \
    X(cluster_load_bytes)                                                                                                    \
    X(load_sectors) X(read_only_load_sectors) X(published_load_sectors) X(store_sectors) X(published_store_sectors)          \
    X(atomic_sectors) X(cluster_load_sectors) X(shared_load_bytes) X(shared_store_bytes) X(shared_load_wavefronts)           \
    X(shared_store_wavefronts) X(bank_conflicts)

namespace host {

enum class Counter : uint32_t {
#define HOST_ENUMERATOR(name) name,
    HOST_COUNTERS(HOST_ENUMERATOR)
#undef HOST_ENUMERATOR
    count
};

// One arithmetic operation of the running lane, which is an instruction of its warp. The place that it returns to says which.
__attribute__((noinline)) void note(Counter operation);

}  // namespace host

#if defined(HOST_COUNTS)

#define HOST_OPERATOR constexpr inline __attribute__((always_inline))

namespace host {

template <class T>
struct Product;

template <class T>
struct Number {
    T value;

    Number() = default;
    template <class X, std::enable_if_t<std::is_arithmetic_v<X>, int> = 0>
    HOST_OPERATOR Number(X x) : value(static_cast<T>(x)) {}
    template <class S, std::enable_if_t<(sizeof(S) < sizeof(T)), int> = 0>
    HOST_OPERATOR Number(Number<S> x) : value(static_cast<T>(x.value)) { report(Counter::conversions); }
    template <class S, std::enable_if_t<(sizeof(S) > sizeof(T)), int> = 0>
    HOST_OPERATOR explicit Number(Number<S> x) : value(static_cast<T>(x.value)) { report(Counter::conversions); }
    template <class X, std::enable_if_t<std::is_arithmetic_v<X>, int> = 0>
    HOST_OPERATOR explicit operator X() const {
        report(Counter::conversions);
        return static_cast<X>(value);
    }

    template <class X> HOST_OPERATOR Number& operator+=(const X& x) { return *this = Number(*this + x); }
    template <class X> HOST_OPERATOR Number& operator-=(const X& x) { return *this = Number(*this - x); }
    template <class X> HOST_OPERATOR Number& operator*=(const X& x) { return *this = Number(*this * x); }
    template <class X> HOST_OPERATOR Number& operator/=(const X& x) { return *this = Number(*this / x); }

    HOST_OPERATOR static void report(Counter operation) {
        if (!__builtin_is_constant_evaluated()) note(operation);
    }
};

// A product that is not computed yet: what becomes of it says whether it is part of a multiply-add.
template <class T>
struct Product {
    T a, b;

    HOST_OPERATOR operator Number<T>() const {
        Number<T>::report(Counter::arithmetic);
        return {a * b};
    }
    template <class S, std::enable_if_t<!std::is_same_v<S, T>, int> = 0>
    HOST_OPERATOR explicit operator Number<S>() const { return Number<S>(Number<T>(*this)); }
};

// What the operators take: a number, a product of two, or one of C++'s own numbers.
template <class X>
struct Operand {
    static constexpr bool counted = false;
    using Type = X;
    HOST_OPERATOR static X of(X x) { return x; }
};
template <class T>
struct Operand<Number<T>> {
    static constexpr bool counted = true;
    using Type = T;
    HOST_OPERATOR static T of(Number<T> x) { return x.value; }
};
template <class T>
struct Operand<Product<T>> {
    static constexpr bool counted = true;
    using Type = T;
    HOST_OPERATOR static T of(Product<T> x) { return Number<T>(x).value; }
};

template <class A, class B>
using if_counted = std::enable_if_t<
    (Operand<A>::counted || Operand<B>::counted) && std::is_arithmetic_v<typename Operand<A>::Type> &&
        std::is_arithmetic_v<typename Operand<B>::Type>,
    std::common_type_t<typename Operand<A>::Type, typename Operand<B>::Type>>;

template <class A, class B, class T = if_counted<A, B>>
HOST_OPERATOR Product<T> operator*(A a, B b) {
    return {static_cast<T>(Operand<A>::of(a)), static_cast<T>(Operand<B>::of(b))};
}

#define HOST_SUM(symbol)                                                                      \
    template <class A, class B, class T = if_counted<A, B>>                                   \
    HOST_OPERATOR Number<T> operator symbol(A a, B b) {                                       \
        if constexpr (std::is_same_v<A, Product<T>>) {                                        \
            const T other = static_cast<T>(Operand<B>::of(b));                                \
            Number<T>::report(Counter::multiply_adds);                                        \
            return {a.a * a.b symbol other};                                                  \
        } else if constexpr (std::is_same_v<B, Product<T>>) {                                 \
            Number<T>::report(Counter::multiply_adds);                                        \
            return {static_cast<T>(Operand<A>::of(a)) symbol b.a * b.b};                      \
        } else {                                                                              \
            Number<T>::report(Counter::arithmetic);                                           \
            return {static_cast<T>(Operand<A>::of(a)) symbol static_cast<T>(Operand<B>::of(b))}; \
        }                                                                                     \
    }
HOST_SUM(+)
HOST_SUM(-)
#undef HOST_SUM

template <class A, class B, class T = if_counted<A, B>>
HOST_OPERATOR Number<T> operator/(A a, B b) {
    Number<T>::report(Counter::divisions);
    return {static_cast<T>(Operand<A>::of(a)) / static_cast<T>(Operand<B>::of(b))};
}

#define HOST_COMPARISON(symbol)                                                                     \
    template <class A, class B, class T = if_counted<A, B>>                                         \
    HOST_OPERATOR bool operator symbol(A a, B b) {                                                  \
        Number<T>::report(Counter::arithmetic);                                                     \
        return static_cast<T>(Operand<A>::of(a)) symbol static_cast<T>(Operand<B>::of(b));          \
    }
HOST_COMPARISON(<) HOST_COMPARISON(>) HOST_COMPARISON(<=) HOST_COMPARISON(>=) HOST_COMPARISON(==) HOST_COMPARISON(!=)
#undef HOST_COMPARISON

// A change of sign is part of the instruction that uses the number.
template <class T> HOST_OPERATOR Number<T> operator-(Number<T> x) { return {-x.value}; }
template <class T> HOST_OPERATOR Product<T> operator-(Product<T> x) { return {-x.a, x.b}; }

template <class X>
using if_counted_alone = std::enable_if_t<Operand<X>::counted, typename Operand<X>::Type>;

// CUDA has a name for float too, with an f, and one for both.
#define HOST_FUNCTION_OF_ONE(name, operation)                                              \
    template <class X, class T = if_counted_alone<X>>                                      \
    inline __attribute__((always_inline)) Number<T> name(X x) {                            \
        const T value = Operand<X>::of(x);                                                 \
        note(Counter::operation);                                                          \
        return {std::name(value)};                                                         \
    }                                                                                      \
    template <class X, class T = if_counted_alone<X>>                                      \
    inline __attribute__((always_inline)) Number<float> name##f(X x) { return name(Number<float>(x)); }
#define HOST_FUNCTION_OF_TWO(name, operation)                                              \
    template <class A, class B, class T = if_counted<A, B>>                                \
    inline __attribute__((always_inline)) Number<T> name(A a, B b) {                       \
        const T first = static_cast<T>(Operand<A>::of(a)), second = static_cast<T>(Operand<B>::of(b)); \
        note(Counter::operation);                                                          \
        return {std::name(first, second)};                                                 \
    }                                                                                      \
    template <class A, class B, class T = if_counted<A, B>>                                \
    inline __attribute__((always_inline)) Number<float> name##f(A a, B b) { return name(Number<float>(a), Number<float>(b)); }
HOST_FUNCTION_OF_ONE(exp, special_functions) HOST_FUNCTION_OF_ONE(exp2, special_functions)
HOST_FUNCTION_OF_ONE(expm1, special_functions) HOST_FUNCTION_OF_ONE(log, special_functions)
HOST_FUNCTION_OF_ONE(log2, special_functions) HOST_FUNCTION_OF_ONE(log1p, special_functions)
HOST_FUNCTION_OF_ONE(tanh, special_functions) HOST_FUNCTION_OF_ONE(sqrt, special_functions)
HOST_FUNCTION_OF_ONE(sin, special_functions) HOST_FUNCTION_OF_ONE(cos, special_functions)
HOST_FUNCTION_OF_ONE(erf, special_functions)
HOST_FUNCTION_OF_TWO(hypot, special_functions) HOST_FUNCTION_OF_TWO(pow, special_functions)
HOST_FUNCTION_OF_ONE(fabs, arithmetic) HOST_FUNCTION_OF_ONE(floor, arithmetic) HOST_FUNCTION_OF_ONE(ceil, arithmetic)
HOST_FUNCTION_OF_TWO(fmin, arithmetic) HOST_FUNCTION_OF_TWO(fmax, arithmetic) HOST_FUNCTION_OF_TWO(copysign, arithmetic)
#undef HOST_FUNCTION_OF_ONE
#undef HOST_FUNCTION_OF_TWO

#define HOST_PREDICATE(name)                                           \
    template <class X, class T = if_counted_alone<X>>                  \
    inline __attribute__((always_inline)) bool name(X x) {             \
        const T value = Operand<X>::of(x);                             \
        note(Counter::arithmetic);                                     \
        return std::name(value);                                       \
    }
HOST_PREDICATE(isnan) HOST_PREDICATE(isinf) HOST_PREDICATE(isfinite) HOST_PREDICATE(signbit)
#undef HOST_PREDICATE

// In place of that of numbers.cuh, also where one of the two is a product. Without a branch, whose ways would count apart.
template <class A, class B, class T = if_counted<A, B>>
inline __attribute__((always_inline)) Number<T> select(bool condition, A yes, B no) {
    const T choices[2] = {static_cast<T>(Operand<B>::of(no)), static_cast<T>(Operand<A>::of(yes))};
    return {choices[condition]};
}

inline int __float_as_int(Number<float> x) { return bits<int>(x); }
inline unsigned __float_as_uint(Number<float> x) { return bits<unsigned>(x); }
inline long long __double_as_longlong(Number<double> x) { return bits<long long>(x); }

template <class T>
inline constexpr bool is_floating<Number<T>> = true;

}  // namespace host

#define float host::Number<float>
#define double host::Number<double>

#endif
