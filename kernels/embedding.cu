// The rows of a table at given indices, and the transpose: a sum of rows for each index.
//
// A block takes several rows of E numbers at a time, or several runs of them: `threadIdx.y` says which, and the threads
// along x share its columns. A thread loads all that a round of its loop needs before it stores.
#include "intrinsics.cuh"

// Calls `columns(c, n)` for the columns c ... c + n - 1 of a thread: in packets of the given size if all rows begin and
// end with whole ones (`packed`), else one by one.
template <int packet, class Columns>
__device__ __forceinline__ void for_columns(bool packed, int E, Columns columns) {
    if (packed && E % packet == 0) {
        for (int c = threadIdx.x * packet; c < E; c += blockDim.x * packet) columns(c, Constant<packet>());
    } else {
        for (int c = threadIdx.x; c < E; c += blockDim.x) columns(c, Constant<1>());
    }
}

// y[i] = weight[indices[i]], a row of NaN if there is no such row. A thread has `gathered` rows.
constexpr int gathered = 4;

template <typename Storage>
__global__ void gather(
    const Storage* __restrict__ weight, const long long* __restrict__ indices, Storage* __restrict__ y, long long count,
    int V, int E) {
    const Storage* from[gathered];
    Storage* to[gathered];
#pragma unroll
    for (int j = 0; j < gathered; ++j) {
        const long long i = ((long long)blockIdx.x * gathered + j) * blockDim.y + threadIdx.y;
        const long long v = i < count ? indices[i] : -1;
        from[j] = v >= 0 && v < V ? weight + v * E : nullptr;
        to[j] = i < count ? y + i * E : nullptr;
    }
    for_columns<Packet<Storage>::size>(begins_packet(weight) && begins_packet(y), E, [&](int c, auto size) {
        constexpr int n = size.value;
        Packet<Storage, n> packets[gathered];
#pragma unroll
        for (int j = 0; j < gathered; ++j) {
            if (from[j]) {
                packets[j] = load_packet<n>(from[j] + c);
            } else {
#pragma unroll
                for (int k = 0; k < n; ++k) packets[j].at[k] = Storage(__int_as_float(0x7fffffff));
            }
        }
#pragma unroll
        for (int j = 0; j < gathered; ++j) {
            if (to[j]) store_packet(to[j] + c, packets[j]);
        }
    });
}

// Stores sums where numbers of type Stored are.
template <typename Stored, typename Real, int n>
__device__ __forceinline__ void store_sums(Stored* address, const Packet<Real, n>& sums) {
    Packet<Stored, n> stored;
#pragma unroll
    for (int k = 0; k < n; ++k) stored.at[k] = Stored(sums.at[k]);
    store_packet(address, stored);
}

// One level of a sum of the rows of each key, in the order of the rows. The keys are sorted; those outside 0 ... V - 1 are
// ignored. The rows are cut into runs of `run` rows. The sum of a key that begins and ends within a run goes to `sums`
// (V, E). The first and the last key of run r may continue in its neighbours: their sums are rows 2r and 2r + 1 of the
// next level. If this is the last level, which has one run, they go to `sums` too. Row i of a level is rows[order[i]], or
// rows[i] without `order`. The rows of the first level are of type Storage, of the next ones of type Real. A thread sums
// its columns of a run, and loads those of `summed` rows before it stores a sum.
constexpr int summed = 4;

template <typename Row, typename Storage, typename Real>
__global__ void sum_runs(
    const Row* __restrict__ rows, const long long* __restrict__ order, const long long* __restrict__ keys,
    Storage* __restrict__ sums, Real* __restrict__ next_rows, long long* __restrict__ next_keys, long long count, int run,
    int V, int E) {
    const long long r = (long long)blockIdx.x * blockDim.y + threadIdx.y, begin = r * run;
    const long long end = begin + run < count ? begin + run : count;
    if (begin >= end) return;
    const bool packed = begins_packet(rows) && begins_packet(sums) && begins_packet(next_rows);
    for_columns<Packet<Real>::size>(packed, E, [&](int c, auto size) {
        constexpr int n = size.value;
        long long key = -1;
        Packet<Real, n> sum = {};
        bool first = next_rows != nullptr;  // whether `sum` is that of the run's first key
#pragma unroll 1
        for (long long i = begin; i < end; i += summed) {
            long long of[summed];
            Packet<Row, n> loaded[summed];
#pragma unroll
            for (int j = 0; j < summed; ++j) {
                of[j] = i + j < end ? keys[i + j] : -1;
                if (of[j] >= V) of[j] = -1;
                if (of[j] >= 0) loaded[j] = load_packet<n>(rows + (order ? order[i + j] : i + j) * E + c);
            }
#pragma unroll
            for (int j = 0; j < summed; ++j) {
                if (of[j] < 0) continue;
                if (of[j] != key) {
                    if (key >= 0 && first) {
                        store_sums(next_rows + 2 * r * E + c, sum);
                        if (c == 0) next_keys[2 * r] = key;
                        first = false;
                    } else if (key >= 0) {
                        store_sums(sums + key * E + c, sum);
                    }
                    key = of[j];
                    sum = {};
                }
#pragma unroll
                for (int k = 0; k < n; ++k) sum.at[k] += Real(loaded[j].at[k]);
            }
        }
        if (!next_rows) {
            if (key >= 0) store_sums(sums + key * E + c, sum);
            return;
        }
        // The second row of a run of a single key is not read.
        store_sums(next_rows + (2 * r + (first ? 0 : 1)) * E + c, sum);
        if (c == 0) {
            next_keys[2 * r + (first ? 0 : 1)] = key;
            if (first) next_keys[2 * r + 1] = -1;
        }
    });
}
