// What differs between a GPU and the host executor, and the only ways by which the blocks of a launch may exchange data.
//
// Every intrinsic stands here twice: for a GPU (PTX or a CUDA built-in), and for the executor in host/.
//
// Data that one block writes and another reads in the same launch: written by publish(), read by read_published(), with
// a GridBarrier (or an arrive() and an await() for it) in between. publish and read_published go past the L1 caches,
// which are not coherent; they do not order anything. arrive releases and await acquires. Nothing else may touch such
// data: no CPU can show what a GPU does to a program that breaks this, so the executor's recorder of accesses checks it.
//
// The blocks of a cluster run on neighbouring multiprocessors (compute capability 9.0), and read each other's shared memory
// by read_of_block(), with a cluster_sync() after it was written, and another one before it is written again or the block
// ends. A translation unit that defines CLUSTER_BLOCKS has kernels in clusters of so many blocks along x.
#pragma once

// Numbers that a thread loads or stores at once: 128 bits of them, unless another count is given.
template <typename T, int count = 16 / sizeof(T)>
struct alignas(count * sizeof(T)) Packet {
    static constexpr int size = count;
    T at[size];
};

template <int count, typename T>
__device__ __forceinline__ Packet<T, count> load_packet(const T* address) {
#if defined(HOST_COUNTS)  // one access, which a compiler might split
    return host_load(reinterpret_cast<const Packet<T, count>*>(address), host::Access::plain);
#else
    return *reinterpret_cast<const Packet<T, count>*>(address);
#endif
}
template <typename T>
__device__ __forceinline__ Packet<T> load_packet(const T* address) {
    return load_packet<Packet<T>::size>(address);
}

template <typename T, int count>
__device__ __forceinline__ void store_packet(T* address, const Packet<T, count>& packet) {
#if defined(HOST_COUNTS)
    host_store(reinterpret_cast<Packet<T, count>*>(address), packet, host::Access::plain);
#else
    *reinterpret_cast<Packet<T, count>*>(address) = packet;
#endif
}

// Whether packets can be loaded from `address` on.
__device__ inline bool begins_packet(const void* address) { return reinterpret_cast<size_t>(address) % 16 == 0; }

// A constant as an argument whose type holds its value.
template <auto constant>
struct Constant {
    static constexpr auto value = constant;
};

#if defined(CLUSTER_BLOCKS)
constexpr int cluster_blocks = CLUSTER_BLOCKS;
#define IN_CLUSTERS __cluster_dims__(CLUSTER_BLOCKS, 1, 1)
#else
constexpr int cluster_blocks = 1;
#define IN_CLUSTERS
#endif

// A count of arrivals that is at least this one says that a thread has stopped waiting, and that the launch has failed.
constexpr unsigned given_up = 1u << 31;

#if defined(__CUDACC__)

// `name` points to the dynamic shared memory of the block, aligned to 16 bytes.
#define DYNAMIC_SHARED(T, name)                                              \
    extern __shared__ __align__(16) unsigned char dynamic_shared_memory[]; \
    T* const name = reinterpret_cast<T*>(dynamic_shared_memory)

// A pointer to global memory that was stored as a number. All this does is tell the compiler which memory it is, and it
// takes both the assumption and the conversions: otherwise each access finds out.
template <typename T>
__device__ __forceinline__ T* global_pointer(long long address) {
    __builtin_assume(__isGlobal(reinterpret_cast<const void*>(address)));
    return static_cast<T*>(__cvta_global_to_generic(__cvta_generic_to_global(reinterpret_cast<const void*>(address))));
}

template <typename T>
__device__ __forceinline__ void publish(T* address, T value) {
    __stcg(address, value);
}

template <typename T>
__device__ __forceinline__ T read_published(const T* address) {
    return __ldcg(address);
}

// A packet that nothing writes during the launch, and one of published numbers.
template <typename T>
__device__ __forceinline__ Packet<T> read_only_packet(const T* address) {
    const uint4 bits = __ldg(reinterpret_cast<const uint4*>(address));
    return *reinterpret_cast<const Packet<T>*>(&bits);
}

template <typename T>
__device__ __forceinline__ Packet<T> read_published_packet(const T* address) {
    const uint4 bits = __ldcg(reinterpret_cast<const uint4*>(address));
    return *reinterpret_cast<const Packet<T>*>(&bits);
}

// Keeps the compiler from computing ahead of a loop what depends on `value`: it would take registers.
__device__ __forceinline__ void compute_late(int& value) { asm volatile("" : "+r"(value)); }

template <typename T>
__device__ __forceinline__ void compute_late(const T*& value) { asm volatile("" : "+l"(value)); }

// What block `rank` of the cluster has at `address` in its dynamic shared memory, which all of them lay out alike.
template <typename T>
__device__ __forceinline__ T read_of_block(const T* address, unsigned rank) {
    unsigned there = static_cast<unsigned>(__cvta_generic_to_shared(address));
    asm("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(there) : "r"(rank));
    if constexpr (sizeof(T) == 8) {
        long long bits;
        asm volatile("ld.shared::cluster.b64 %0, [%1];" : "=l"(bits) : "r"(there) : "memory");
        return *reinterpret_cast<const T*>(&bits);
    } else {
        static_assert(sizeof(T) == 4, "numbers of 4 or 8 bytes");
        int bits;
        asm volatile("ld.shared::cluster.b32 %0, [%1];" : "=r"(bits) : "r"(there) : "memory");
        return *reinterpret_cast<const T*>(&bits);
    }
}

// A barrier of all threads of the cluster.
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
}

// In the body of every loop that waits for another thread.
__device__ __forceinline__ void spin_pause() {
#if __CUDA_ARCH__ >= 700
    __nanosleep(20);
#endif
}

// Adds one to `word`, after all that this thread, and those it has met at a barrier, did before. `goal` is the count that
// this arrival is part of; the executor keeps arrivals for different goals apart.
__device__ __forceinline__ void arrive(unsigned* word, unsigned goal) {
    (void)goal;
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(word) : "memory");
}

// Returns when `word` has reached `goal`; what was done before those arrivals is then visible to this thread. False if some
// thread has looked `most_polls` times in vain, which takes seconds: then `word` is past `given_up`, and every goal.
__device__ __forceinline__ bool await(unsigned* word, unsigned goal) {
    constexpr unsigned most_polls = 1u << 25;
    for (unsigned polls = 0; polls < most_polls; ++polls) {
        unsigned count;
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(word) : "memory");
        if (count >= goal) return count < given_up;
        spin_pause();
    }
    atomicOr(word, given_up);
    return false;
}

#else

#define DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(host::dynamic_shared())

template <typename T>
HOST_INLINE T* global_pointer(long long address) {
    return reinterpret_cast<T*>(address);
}

template <typename T>
HOST_INLINE void publish(T* address, T value) {
    __stcg(address, value);
}

template <typename T>
HOST_INLINE T read_published(const T* address) {
    return __ldcg(address);
}

template <typename T>
HOST_INLINE Packet<T> read_only_packet(const T* address) {
    return __ldg(reinterpret_cast<const Packet<T>*>(address));
}

template <typename T>
HOST_INLINE Packet<T> read_published_packet(const T* address) {
    return __ldcg(reinterpret_cast<const Packet<T>*>(address));
}

inline void compute_late(int&) {}

template <typename T>
void compute_late(const T*&) {}

template <typename T>
HOST_INLINE T read_of_block(const T* address, unsigned rank, HOST_SITE) {
    return host_load(static_cast<const T*>(host::shared_of_block(address, sizeof(T), rank, file, line)), host::Access::cluster);
}

inline void cluster_sync(HOST_SITE) { host::barrier(host::Barrier::cluster, 1, file, line); }

inline void spin_pause(HOST_SITE) { host::spin_pause(file, line); }

HOST_INLINE void arrive(unsigned* word, unsigned goal) {
    host::released(word, goal);
    atomicAdd(word, 1u);
}

HOST_INLINE bool await(unsigned* word, unsigned goal, HOST_SITE) {
    for (uint64_t polls = 0; polls < host::most_polls(); ++polls) {
        const unsigned count = host_load(word, host::Access::atomic);
        if (count >= goal) {
            host::acquired(word, goal);
            return count < given_up;
        }
        host::spin_pause(file, line);
    }
    atomicOr(word, given_up);
    return false;
}

#endif

// A barrier of `blocks` blocks, again and again: all of a cooperative launch, or those that share the word `arrived`.
// The word is zero before the launch. arrive() and wait() may have other work between them; sync() is both.
// Every thread of the block makes one and calls it; the block's own threads are synchronised too.
struct GridBarrier {
    unsigned* arrived;
    unsigned blocks;
    unsigned goal;  // of `arrived`, at the next arrival or the last one made

    __device__ GridBarrier(unsigned* arrived = nullptr, unsigned blocks = 0) : arrived(arrived), blocks(blocks), goal(0) {}

    __device__ void arrive() {
        goal += blocks;
        __syncthreads();
        if (is_first_thread()) ::arrive(arrived, goal);
    }

    // False if a block has not come for seconds. Nobody waits in this launch any more, and what it computes is worthless.
    __device__ bool wait() {
        const bool failed = is_first_thread() && !await(arrived, goal);
        return !__syncthreads_or(failed);
    }

    __device__ bool sync() {
        arrive();
        return wait();
    }

    __device__ static bool is_first_thread() { return threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0; }
};
