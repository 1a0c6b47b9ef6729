// The order of the steps of each direction, and the steps at which rows end or restart.
//
// Steps are counted by position s = 0 ... T-1 in the order of their direction: t = s forward, t = T-1-s backward.
// Training keeps all steps: slots = T, and step t is in slot t. Otherwise slots = 2, used in turn, so that a step can
// write the operand of the next one while others still read its own.
#pragma once

struct Clock {
    int T, B, slots;
    const int* lengths;
    const bool* resets;

    __device__ int time(int d, int s) const { return d == 0 ? s : T - 1 - s; }
    __device__ int slot(int d, int s) const { return slots == T ? time(d, s) : s % slots; }
    __device__ int length(int b) const { return lengths ? lengths[b] : T; }
    // Whether no state enters step t from the step before it in its direction, in a row of `length` steps: a reset at t
    // separates t - 1 from t.
    __device__ bool cut(int d, int t, int b, int length) const {
        const int border = d == 0 ? t : t + 1;
        return resets && border < T && border < length && resets[(long long)border * B + b];
    }
    // For code that does not keep the length of a row.
    __device__ bool past(int t, int b) const { return t >= length(b); }
    __device__ bool cut(int d, int t, int b) const { return cut(d, t, b, length(b)); }
};
