// The backward pass in one cooperative launch whose blocks exchange sums, by a reduce-scatter.
//
// Under the exchange grid of fused.cu every block reads the gate gradients of all units, an all-gather. Here block (x, y, z)
// multiplies the gate gradients of its own units by their rows of W_hh. That gives it a part of dh_{t-1} of every unit. It
// publishes all those parts, and adds up what all blocks have published for its units, in a fixed order. So a number of a
// unit travels from each block to its owner, in place of G numbers from its owner to each block.
//
// `units` and `rows` are those of fused.cu, and so is the barrier. A thread computes the product for every `threads`-th
// unit, for `columns` rows of the batch at a time, and all of its sums alone. The first packets of its weights stay in its
// registers, the others in shared memory. It computes the steps of one unit of one row at most.
#include "recurrence/steps.cuh"

// Of a block. With more, a thread would have too few registers for weights and sums.
constexpr int threads = 256;

// How the units of all blocks and rows lie in `sums` (2, D, gridDim.y, reader, writer, stride): what block `writer` has
// published for the units of block `reader` of its rows, row after row. Steps use its halves in turn.
struct Sums {
    int blocks, stride, group, groups;

    // `size` numbers are a packet.
    __device__ Sums(int units, int rows, int size)
        : blocks(gridDim.x), stride((units * rows + size - 1) / size * size), group(blockIdx.z * gridDim.y + blockIdx.y),
          groups(gridDim.z * gridDim.y) {}
    __device__ int begin(int half, int reader, int writer) const {
        return (((half * groups + group) * blocks + reader) * blocks + writer) * stride;
    }
};

// Adds a packet's products with the weights of a thread's units to its sums, value c * units + i that of its c-th row of the
// batch and its i-th unit. The operand is in shared memory, the packet of each of these rows.
template <int columns, int units, typename Real, typename Storage, class Weight>
__device__ __forceinline__ void add_products(
    Real (&values)[columns * units], const Storage* operand, const Weight& weight) {
    Packet<Storage> w[units];
#pragma unroll
    for (int i = 0; i < units; ++i) w[i] = weight(i);
#pragma unroll
    for (int c = 0; c < columns; ++c) {
        const Packet<Storage> x = load_packet(operand + c * Packet<Storage>::size);
#pragma unroll
        for (int e = 0; e < x.size; ++e) {
#pragma unroll
            for (int i = 0; i < units; ++i) values[c * units + i] += Real(w[i].at[e]) * Real(x.at[e]);
        }
    }
}

// w (D, G, H, H) is w_hh; sums are of type Real and not initialised, and the same array in all launches of a pass. The
// others are those of backward in fused.cu. Dynamic shared memory is gate gradients (tiles of `columns` rows; packets of
// G * units; rows of a tile), parts of sums (threads packets), and weights that are not in registers. A thread has
// `thread_units` units of the product.
template <class Cell, typename Storage, int columns, int thread_units, int held>
__global__ void __launch_bounds__(threads, 1) backward_scatter(
    const Storage* w, const Storage* saved, const int* lengths, const Marks* marks, const Storage* mask, const Storage* dy,
    typename Cell::Real* dh, typename Cell::Real* dc, typename Cell::Real* direct, Storage* dx, Storage* dp,
    typename Cell::Real* sums, unsigned* arrived, int T, int B, int H, int first, int last, int units, int rows, Cell cell) {
    using Real = typename Cell::Real;
    using Layer = Backward<Cell, Storage>;
    constexpr int G = Cell::gates, size = Packet<Storage>::size, of_packet = Packet<Real>::size;
    static_assert(Cell::phases == 1, "a second phase has an operand of its own");
    DYNAMIC_SHARED(Storage, memory);
    const int D = gridDim.z, d = blockIdx.z, j0 = blockIdx.x * units, own = min(units, H - j0);
    const int first_row = blockIdx.y * rows, R = min(rows, B - first_row);
    constexpr int of_rows = columns * size;  // numbers of a packet of all rows of a tile
    const int packets = (G * units + size - 1) / size, numbers = (rows + columns - 1) / columns * packets * of_rows;
    Storage* const gradients = memory;
    Real* const parts = reinterpret_cast<Real*>(gradients + numbers);
    Storage* const weights = reinterpret_cast<Storage*>(parts + threads * of_packet);
    const Sums places(units, rows, of_packet);
    const Clock clock{T, B, T, lengths, marks};

    // The unit whose steps this thread computes.
    const int row = threadIdx.x / own, unit_of_block = threadIdx.x % own;
    const bool owns = row < R;
    const Unit unit(clock, H, D, d, first_row + row, j0 + unit_of_block, owns);
    const Layer layer(cell, unit, owns, saved, nullptr, mask, dy, dx);
    typename Layer::Inputs inputs;
    Unit::Entry before;  // of the position that the next product ends
    Carried<Real> carried{};

    // Weights of a packet of the block's gate gradients: number k is of gate k % G of unit k / G.
    w += (long long)d * G * H * H;
    const auto weights_of = [&](int packet, int i) {
        Packet<Storage> found;
        const int j = threadIdx.x + i * threads;
#pragma unroll
        for (int e = 0; e < size; ++e) {
            const int k = packet * size + e;
            const bool exists = k < G * own && j < H;
            found.at[e] = exists ? __ldg(w + ((long long)(k % G) * H + j0 + k / G) * H + j) : Storage(0);
        }
        return found;
    };
    Packet<Storage> registers[held][thread_units];
#pragma unroll
    for (int packet = 0; packet < held; ++packet) {
#pragma unroll
        for (int i = 0; i < thread_units; ++i) registers[packet][i] = weights_of(packet, i);
    }
    Storage* const stored = weights + threadIdx.x * size;
    for (int packet = held; packet < packets; ++packet) {
        for (int i = 0; i < thread_units; ++i) {
            store_packet(stored + ((packet - held) * thread_units + i) * threads * size, weights_of(packet, i));
        }
    }
    for (int k = threadIdx.x; k < numbers; k += threads) gradients[k] = Storage(0);  // what fills packets and tiles is finite

    // What this block reads: packets of each writer's part, every `slices`-th writer's by the same threads.
    const int to_read = (R * own + of_packet - 1) / of_packet, slices = threads / to_read;
    const int slice = threadIdx.x / to_read, part = threadIdx.x % to_read * of_packet;
    // What it writes of each of this thread's units: where, and how many units their owner has.
    int place[thread_units], apart[thread_units];
#pragma unroll
    for (int i = 0; i < thread_units; ++i) {
        const int j = threadIdx.x + i * threads, reader = j / units;
        place[i] = places.begin(0, reader, blockIdx.x) + j % units;
        apart[i] = j < H ? min(units, H - reader * units) : 0;
    }

    if (owns) {
        carried.dh = dh[unit.index()];
        if (Cell::has_c) carried.dc = dc[unit.index()];
        if (first > 0) carried.direct = direct[unit.index()];
        const int s = T - 1 - first;
        if (s + 1 < T) before = unit.entry(s + 1);
        if (s >= 0) {
            inputs.entry = unit.entry(s);
            layer.load(s, inputs);
        }
    }
    GridBarrier barrier(arrived + places.group, gridDim.x);
    __syncthreads();

#pragma unroll 1
    for (int n = first; n < last; ++n) {
        const int s = T - 1 - n;
        bool met = true;
        if (n > 0) {
            met = barrier.wait();
            if (slice < slices) {
                const Real* const from = sums + places.begin((n - 1) % 2, blockIdx.x, 0) + part;
                Packet<Real> total{};
#pragma unroll 4
                for (int writer = slice; writer < places.blocks; writer += slices) {
                    const Packet<Real> read = read_published_packet(from + writer * places.stride);
#pragma unroll
                    for (int e = 0; e < of_packet; ++e) total.at[e] += read.at[e];
                }
                store_packet(parts + slice * to_read * of_packet + part, total);
            }
            __syncthreads();
        }
        typename Layer::Gradients gates;
        if (owns) {
            Real product = 0;
            if (n > 0) {
                for (int k = 0; k < slices; ++k) product += parts[k * to_read * of_packet + threadIdx.x];
            }
            if (!met) product = Real(__int_as_float(0x7fc00000));  // not a number
            if (n > 0) layer.finish(before, product, carried);
            if (s >= 0) {
                layer.begin(inputs, carried, gates);
#pragma unroll
                for (int gate = 0; gate < G; ++gate) {
                    const int k = unit_of_block * G + gate;
                    gradients[(row / columns * packets + k / size) * of_rows + row % columns * size + k % size] =
                        Storage(gates.of_product(gate));
                }
            }
        }
        if (s < 0) continue;
        __syncthreads();
        for (int r0 = 0; r0 < R; r0 += columns) {
            Real values[columns * thread_units] = {};
            const Storage* operand = gradients + r0 * packets * size;
            const Storage* const end = operand + packets * of_rows;
#pragma unroll
            for (int packet = 0; packet < held; ++packet) {
                if (packet < packets) {
                    add_products<columns, thread_units>(
                        values, operand + packet * of_rows, [&](int i) { return registers[packet][i]; });
                }
            }
            operand += held * of_rows;
            const Storage* weight = stored;
#pragma unroll 1  // more would take too many registers
            for (; operand < end; operand += of_rows, weight += thread_units * threads * size) {
                add_products<columns, thread_units>(
                    values, operand, [&](int i) { return load_packet(weight + i * threads * size); });
            }
            const int half = places.begin(n % 2, 0, 0) - places.begin(0, 0, 0);
#pragma unroll
            for (int i = 0; i < thread_units; ++i) {
                Real* const to = sums + half + place[i] + r0 * apart[i];
#pragma unroll
                for (int c = 0; c < columns; ++c) {
                    if (r0 + c < R && apart[i] > 0) publish(to + c * apart[i], values[c * thread_units + i]);
                }
            }
        }
        barrier.arrive();
        // While the other blocks arrive.
        if (owns) {
#pragma unroll
            for (int gate = 0; gate < G; ++gate) dp[unit.gate(s, G, gate)] = Storage(gates.of_product(gate));
            layer.save(s, gates);
            before = inputs.entry;
            if (s > 0) {
                inputs.entry = unit.entry(s - 1);
                layer.load(s - 1, inputs);
            }
        }
    }

    if (owns) {
        dh[unit.index()] = carried.dh;
        if (Cell::has_c) dc[unit.index()] = carried.dc;
        direct[unit.index()] = carried.direct;
    }
}
