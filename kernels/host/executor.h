// What the CUDA names in cuda_on_host.h are made of, and what the parts of the executor share.
#pragma once

#include <cstddef>
#include <cstdint>

namespace host {

// ---- What kernels call -------------------------------------------------------------------------------------------

enum class Barrier { sync, count, all, any, cluster };
enum class Collective { syncwarp, shuffle, shuffle_up, shuffle_down, shuffle_xor, ballot, match };
// How memory is touched. Published: past the L1 cache (publish, read_published, __ldcg, __stcg). Read-only: __ldg. Cluster: the
// shared memory of a block of the cluster, by that block's rank (read_of_block).
enum class Access : uint32_t { plain, published, atomic, read_only, cluster };

// `file` and `line` are those of the call in the kernel; messages name them, and all threads of a block must meet at one.
int barrier(Barrier kind, int predicate, const char* file, int line);
uint64_t collective(Collective kind, unsigned mask, uint64_t value, int lane, int width, const char* file, int line);
unsigned active_mask();
void spin_pause(const char* file, int line);
uint64_t most_polls();  // of an await() that nobody answers
void* dynamic_shared();
// Where block `rank` of the running block's cluster has what is at `address` in this one's dynamic shared memory.
const void* shared_of_block(const void* address, size_t bytes, unsigned rank, const char* file, int line);
// A write that another thread may be waiting for; spinning without any of them is an error in the end.
void note_progress();
// arrive: what this block did before its last barrier is released to those who await the same goal of the same word.
void released(const void* word, uint64_t goal);
void acquired(const void* word, uint64_t goal);
void note_access(const void* address, size_t bytes, bool is_write, Access access, const void* pc);
// Ends the launch. `check` is the word by which tests and people know the kind of error.
[[noreturn]] void fail(const char* check, const char* format, ...) __attribute__((format(printf, 2, 3)));

struct Index {
    unsigned x, y, z;
};

// ---- The kernels of a library: defined by the generated translation unit ------------------------------------------

struct Kernel {
    const char* name;
    const char* parameters;  // comma-separated, each like "const f4*" or "i4": NumPy's type codes
    void (*function)();
    void (*call)(void (*function)(), void** arguments);
    uint32_t cluster;  // blocks of a cluster, along x
};
extern const Kernel kernels[];
extern const int kernel_count;

// ---- Between executor.cpp and the recorder --------------------------------------------------------------------------

struct Region {  // an array that the kernel may touch
    char* begin;
    uint64_t bytes;
    const char* name;
};

// The running thread, as the recorder of accesses knows it.
struct Position {
    uint32_t thread;  // number in the grid
    uint32_t block;   // number in the grid
    uint32_t warp;    // number in the block
    uint32_t lane;
    uint32_t epoch;  // barriers that its block has passed
};
Position position();
bool in_own_stack(const void* address);
bool in_any_stack(const void* address);
void describe_thread(uint32_t thread, char* text, size_t capacity);  // "block (1, 0, 0) thread (5, 0, 0)"

// The recorder: conflicts.cpp or counts.cpp, by the build. In builds without one (no_recorder.cpp) these do nothing.
void recorder_begin(const Region* regions, int count, uint32_t blocks, uint32_t threads_per_block);
void recorder_end();
void recorder_after_fork();  // in the child: forgets a launch that another thread was amid in the parent
void recorder_enter_block(uint32_t block, char* static_shared, size_t static_bytes, char* dynamic, size_t dynamic_bytes);
void recorder_start_block(uint32_t block);
void recorder_end_block(uint32_t block, uint32_t barriers);
void recorder_leave_block(uint32_t block);  // its last thread has ended
void recorder_collective(Collective kind, uint32_t block, uint32_t warp, unsigned lanes, bool of_all);
void recorder_spin();
void recorder_access(const void* address, size_t bytes, bool is_write, Access access, const void* pc);
void recorder_released(uint32_t block, uint32_t epoch, const void* word, uint64_t goal);
void recorder_acquired(uint32_t block, const void* word, uint64_t goal);

}  // namespace host
