// Rows of a table out, and a sum of rows in.

// y[i] = weight[indices[i]], a row of NaN where there is no such row. Neighbouring threads copy neighbouring numbers.
template <typename Real>
__global__ void gather(const Real* weight, const long long* indices, Real* y, long long count, int V, int E) {
    const long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= count * E) return;
    const long long v = indices[k / E];
    y[k] = v >= 0 && v < V ? weight[v * E + k % E] : Real(__int_as_float(0x7fffffff));
}

// A level of a sum of the rows of each key, in the order of the rows. Keys are in order, those outside 0 ... V - 1 are
// passed over. Each run of rows of `run` sums up by itself: keys that begin and end within it are done and go to
// `sums` (V, E); those of its first and last key, which may go on outside, are the two rows 2r and 2r + 1 of the next
// level, or go to `sums` too where this is the last level, of one run. Row i of a level is rows[order[i]], or rows[i].
// A thread sums one column of a run.
template <typename Real>
__global__ void sum_runs(
    const Real* rows, const long long* order, const long long* keys, Real* sums, Real* next_rows, long long* next_keys,
    long long count, int run, int V, int E) {
    const long long runs = (count + run - 1) / run, k = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= runs * E) return;
    const long long r = k / E, begin = r * run, end = begin + run < count ? begin + run : count;
    const int e = k % E;
    long long key = -1;
    Real sum = 0;
    bool first = next_rows != nullptr;  // whether the sum under way is that of the run's first key
    for (long long i = begin; i < end; ++i) {
        if (keys[i] < 0 || keys[i] >= V) continue;
        if (keys[i] != key) {
            if (key >= 0 && first) {
                next_rows[2 * r * E + e] = sum;
                if (e == 0) next_keys[2 * r] = key;
                first = false;
            } else if (key >= 0) {
                sums[key * E + e] = sum;
            }
            key = keys[i];
            sum = 0;
        }
        sum += rows[(order ? order[i] : i) * E + e];
    }
    if (!next_rows) {
        if (key >= 0) sums[key * E + e] = sum;
        return;
    }
    // A run of a single key has nothing to pass on in its second row, which is then not read.
    next_rows[(2 * r + (first ? 0 : 1)) * E + e] = sum;
    if (e == 0) {
        next_keys[2 * r + (first ? 0 : 1)] = key;
        if (first) next_keys[2 * r + 1] = -1;
    }
}
