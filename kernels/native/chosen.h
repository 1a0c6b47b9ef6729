// Activations that are chosen at run time: one library then serves a cell with any of them.
#pragma once

#include "cells/activations.cuh"
#include "native/simd.h"

struct ValueOf {
    template <class F, typename Real>
    static ALWAYS_INLINE Real of(Real a, const Real* n) { return F::value(F::keep(a, n), n); }
};
struct SlopeOf {
    template <class F, typename Real>
    static ALWAYS_INLINE Real of(Real a, const Real* n) { return F::slope(F::keep(a, n), n); }
};
struct ComplementOf {
    template <class F, typename Real>
    static ALWAYS_INLINE Real of(Real a, const Real* n) { return Complement<F>::of(F::keep(a, n), n); }
};

// What the activation n[0] of F... gives for a, with its alpha and beta behind that number. One copy in a library, called:
// inlined at each gate it would take the compiler many times as long.
template <class What, class... F, typename Real>
__attribute__((noinline)) Real by_number(Real a, const Real* n) {
    const int choice = int(n[0].raw[0]);
    int number = 0;
    Real result = a;
    (void)((number++ == choice && (result = What::template of<F>(a, n + 1), true)) || ...);
    return result;
}

// The activation that the cell's number `at` chooses among F..., whose alpha and beta are the two numbers behind it.
template <int at, class... F>
struct OneOf : OfArgument {
    template <typename Real>
    static ALWAYS_INLINE Real value(Real a, const Real* n) { return by_number<ValueOf, F...>(a, n + at); }
    template <typename Real>
    static ALWAYS_INLINE Real slope(Real a, const Real* n) { return by_number<SlopeOf, F...>(a, n + at); }
};
template <int at, class... F>
struct Complement<OneOf<at, F...>> {
    template <typename Real>
    static ALWAYS_INLINE Real of(Real a, const Real* n) { return by_number<ComplementOf, F...>(a, n + at); }
};
