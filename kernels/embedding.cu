// The rows of a table at given indices, and the transpose: a sum of rows for each index.

// y[i] = weight[indices[i]], a row of NaN if there is no such row. Neighbouring threads copy neighbouring numbers.
template <typename Storage>
__global__ void gather(const Storage* weight, const long long* indices, Storage* y, long long count, int V, int E) {
    const long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= count * E) return;
    const long long v = indices[k / E];
    y[k] = v >= 0 && v < V ? weight[v * E + k % E] : Storage(__int_as_float(0x7fffffff));
}

// One level of a sum of the rows of each key, in the order of the rows. The keys are sorted; those outside 0 ... V - 1 are
// ignored. The rows are cut into runs of `run` rows. The sum of a key that begins and ends within a run goes to `sums`
// (V, E). The first and the last key of run r may continue in its neighbours: their sums are rows 2r and 2r + 1 of the
// next level. If this is the last level, which has one run, they go to `sums` too. Row i of a level is rows[order[i]], or
// rows[i] without `order`. The rows of the first level are of type Storage, of the next ones of type Real. A thread sums
// one column of a run.
template <typename Row, typename Storage, typename Real>
__global__ void sum_runs(
    const Row* rows, const long long* order, const long long* keys, Storage* sums, Real* next_rows, long long* next_keys,
    long long count, int run, int V, int E) {
    const long long runs = (count + run - 1) / run, k = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= runs * E) return;
    const long long r = k / E, begin = r * run, end = begin + run < count ? begin + run : count;
    const int e = k % E;
    long long key = -1;
    Real sum = 0;
    bool first = next_rows != nullptr;  // whether `sum` is that of the run's first key
    for (long long i = begin; i < end; ++i) {
        if (keys[i] < 0 || keys[i] >= V) continue;
        if (keys[i] != key) {
            if (key >= 0 && first) {
                next_rows[2 * r * E + e] = sum;
                if (e == 0) next_keys[2 * r] = key;
                first = false;
            } else if (key >= 0) {
                sums[key * E + e] = Storage(sum);
            }
            key = keys[i];
            sum = 0;
        }
        sum += Real(rows[(order ? order[i] : i) * E + e]);
    }
    if (!next_rows) {
        if (key >= 0) sums[key * E + e] = Storage(sum);
        return;
    }
    // The second row of a run of a single key is not read.
    next_rows[(2 * r + (first ? 0 : 1)) * E + e] = sum;
    if (e == 0) {
        next_keys[2 * r + (first ? 0 : 1)] = key;
        if (first) next_keys[2 * r + 1] = -1;
    }
}
