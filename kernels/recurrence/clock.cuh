// The order of the steps of each direction, and the steps at which rows pause, end or restart.
//
// Steps are counted by position s = 0 ... T-1 in the order of their direction: t = s forward, t = T-1-s backward.
// Training keeps all steps: slots = T, and step t is in slot t. Otherwise slots = 2, used in turn, so that a step can
// write the operand of the next one while others still read its own.
#pragma once

// What is marked at a step of a row, each a bit: a new sequence starts there; the row has no such step, so that its state
// stays as it is; besides that, y is h there, and not zero.
using Marks = unsigned char;
constexpr Marks reset_mark = 1, hole_mark = 2, repeat_mark = 4;

struct Clock {
    int T, B, slots;
    const int* lengths;
    const Marks* marks;  // (T, B), or null

    __device__ int time(int d, int s) const { return d == 0 ? s : T - 1 - s; }
    __device__ int slot(int d, int s) const { return slots == T ? time(d, s) : s & 1; }
    __device__ int length(int b) const { return lengths ? lengths[b] : T; }
    __device__ bool is_marked(int t, int b, Marks mark) const { return marks && (marks[(long long)t * B + b] & mark) != 0; }
    // Whether a row of `length` steps has no step t.
    __device__ bool past(int t, int b, int length) const { return t >= length || is_marked(t, b, hole_mark); }
    // Whether y is h at a step t that the row does not have.
    __device__ bool repeats(int t, int b, int length) const { return t < length && is_marked(t, b, repeat_mark); }
    // Whether no state enters step t, which may be a hole, from the step before it in its direction, in a row of `length`
    // steps: a reset at t separates t - 1 from t.
    __device__ bool cut(int d, int t, int b, int length) const {
        const int border = d == 0 ? t : t + 1;
        return border < T && border < length && is_marked(border, b, reset_mark);
    }
    // For code that does not keep the length of a row.
    __device__ bool past(int t, int b) const { return past(t, b, length(b)); }
    __device__ bool repeats(int t, int b) const { return repeats(t, b, length(b)); }
    __device__ bool cut(int d, int t, int b) const { return cut(d, t, b, length(b)); }
};
