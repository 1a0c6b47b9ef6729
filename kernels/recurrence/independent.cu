// The recurrence of units that do not read each other's states: h_t = f(a_t + u h_{t-1}) + leak h_{t-1}.
//
// A thread takes all steps of one column (row of the batch and unit), and neighbouring threads neighbouring columns. It
// loads what some steps need before the first of them, because only the state waits for the step before. The cell is a
// struct of cells/ with one gate, whose recurrent product is u h.
//
//   a, h, dh, da (T, B, H)     u, h0, du, dh0 (B, H)     marks (T, B) or null     kept (T, B, H): the cell's saved value
#include "intrinsics.cuh"
#include "numbers.cuh"
#include "recurrence/clock.cuh"

constexpr int steps_at_once = 4;

template <class Cell, typename Storage>
__global__ void independent_forward(
    const Storage* a, const Storage* u, const Storage* h0, const Marks* marks, Storage* h, typename Cell::Real* kept,
    long long T, long long B, long long H, Cell cell) {
    using Real = typename Cell::Real;
    const long long columns = B * H, k = (long long)blockIdx.x * blockDim.x + threadIdx.x, b = k / H;
    if (k >= columns) return;
    const Real weight = u[k];
    Real state = h0[k], no_c = 0;
    for (long long first = 0; first < T; first += steps_at_once) {
        Real entering[steps_at_once];
        Marks mark[steps_at_once];
#pragma unroll
        for (int i = 0; i < steps_at_once; ++i) {
            const long long t = first + i < T ? first + i : T - 1;
            entering[i] = a[t * columns + k];
            mark[i] = marks ? marks[t * B + b] : Marks(0);
        }
#pragma unroll
        for (int i = 0; i < steps_at_once; ++i) {
            const long long t = first + i;
            if (t < T) {
                if (mark[i] & reset_mark) state = 0;
                if (!(mark[i] & hole_mark)) {
                    const Real x[1] = {entering[i]}, product[1] = {weight * state};
                    Real saved[1];
                    cell.forward(x, product, state, no_c, saved);
                    if (kept) kept[t * columns + k] = saved[0];
                }
                h[t * columns + k] = Storage(state);
            }
        }
    }
}

template <class Cell, typename Storage>
__global__ void independent_backward(
    const Storage* dh, const Storage* h, const Storage* h0, const Storage* u, const typename Cell::Real* kept,
    const Marks* marks, Storage* da, Storage* du, Storage* dh0, long long T, long long B, long long H, Cell cell) {
    using Real = typename Cell::Real;
    const long long columns = B * H, k = (long long)blockIdx.x * blockDim.x + threadIdx.x, b = k / H;
    if (k >= columns) return;
    const Real weight = u[k];
    Real carried = 0, sum = 0, no_c = 0;
    for (long long last = T - 1; last >= 0; last -= steps_at_once) {
        Real given[steps_at_once], before[steps_at_once], saved[steps_at_once];
        Marks mark[steps_at_once];
#pragma unroll
        for (int i = 0; i < steps_at_once; ++i) {
            const long long t = last - i > 0 ? last - i : 0;
            given[i] = dh[t * columns + k];
            before[i] = t > 0 ? h[(t - 1) * columns + k] : h0[k];
            mark[i] = marks ? marks[t * B + b] : Marks(0);
            saved[i] = mark[i] & hole_mark ? Real(0) : kept[t * columns + k];
        }
#pragma unroll
        for (int i = 0; i < steps_at_once; ++i) {
            const long long t = last - i;
            if (t >= 0) {
                const Real d = given[i] + carried;
                Real of_gate[1] = {0}, of_product[1];
                carried = d;
                if (!(mark[i] & hole_mark)) {
                    const Real own[1] = {saved[i]};
                    cell.backward(own, d, no_c, of_gate, of_product, carried);
                    carried += weight * of_gate[0];
                    if (!(mark[i] & reset_mark)) sum += of_gate[0] * before[i];
                }
                if (mark[i] & reset_mark) carried = 0;
                da[t * columns + k] = Storage(of_gate[0]);
            }
        }
    }
    du[k] = Storage(sum);
    dh0[k] = Storage(carried);
}
