// Runs a kernel: a fiber for each CUDA thread, one OS thread for all of them.
//
// A fiber runs until it waits (at a barrier, a warp collective or in a spin) or ends; then the scheduler picks another of
// the same block, at random from the launch's seed, and goes to the next block when this one has none left to run. A plain
// launch finishes each block, or each cluster of blocks, before it starts the next; a cooperative one keeps all blocks alive and
// visits them round by round.
// Nothing can hang: with no fiber able to run the launch ends with a report of who waits where (deadlock), rounds in which
// fibers only spin are counted, a watchdog takes the processor from a fiber that never waits at all, and a fiber that waits
// again and again does so a bounded number of times.
#include "executor.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "fiber.h"

#if HOST_ASSEMBLY
asm(R"(
.text
.globl gpurnn_host_switch
.hidden gpurnn_host_switch
.type gpurnn_host_switch, @function
gpurnn_host_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size gpurnn_host_switch, . - gpurnn_host_switch
.section .note.GNU-stack, "", @progbits
.text
)");
#endif

// The names of CUDA, set at each switch of fibers. The whole launch runs in one OS thread.
host::Index threadIdx, blockIdx, blockDim, gridDim;

namespace host {

struct Launch {  // filled by kernels/host/__init__.py
    int32_t kernel;
    uint32_t grid[3], block[3];
    int32_t cooperative;
    uint64_t shared_bytes;
    uint64_t seed;
    double stall_seconds;  // for how long one fiber may run without waiting
    uint64_t most_waits;   // of one fiber
    uint64_t most_polls;   // of an await() that nobody answers
    void** arguments;
    const Region* regions;
    int32_t region_count;
};

namespace {

constexpr unsigned warp_size = 32;
constexpr unsigned all_lanes = 0xffffffffu;
constexpr unsigned char fresh = 0xff;      // bytes that are NaN in every floating-point format
constexpr size_t red_zone_bytes = 256;     // behind the dynamic shared memory
constexpr int idle_rounds_allowed = 1000;  // rounds in which fibers spun and nobody published, arrived or ended
constexpr size_t stacks_kept = 1024;
// Not a power of two: stacks that start at the same address modulo 4096 would share a few lines of the cache.
constexpr size_t stack_bytes = (HOST_ASAN ? 256 * 1024 : 64 * 1024) + 9 * 64;

enum class State { ready, spinning, at_barrier, at_collective, ended };

struct Block;

struct Thread {
    Fiber fiber;
    Block* block;
    Index index;
    uint32_t number;  // in the block
    State state;
    const char* file;  // where it waits
    int line;
    uint64_t waits;  // so far
    // what it brought to the barrier or collective, and what it got
    Barrier barrier;
    Collective collective;
    unsigned mask;
    int lane_argument;
    int width;
    uint64_t value;
    uint64_t result;

    unsigned lane() const { return number % warp_size; }
    unsigned warp() const { return number / warp_size; }
};

struct Block {
    Index index;
    uint32_t number;
    Thread* threads;
    std::vector<Thread*> ready, spinning;
    unsigned running;  // threads that have not ended
    unsigned at_barrier;
    bool at_cluster_barrier;               // all of its threads
    uint32_t epoch;                        // barriers passed
    std::unique_ptr<char[]> static_shared;  // while another block that is alive with it is in the library's own
    char* dynamic_shared;
};

const Launch* launch;
std::vector<Thread> threads;
std::vector<Block> blocks;
Thread* current;  // null while the scheduler runs
Fiber scheduler;
char* stacks;
size_t stack_count;
char* static_shared;
size_t static_shared_bytes;
size_t anchor_offset;  // of `anchor` from the start of the thread-local segment
uint64_t random_state;
uint64_t progress;                // see note_progress
volatile uint64_t switches;       // the watchdog's sign of life
volatile bool in_launch;
volatile double stall_seconds;    // the launch's, which the watchdog may look for when the launch is gone
pthread_t launching_thread;
bool failed;
char report[4096];

// Lies in the library's thread-local segment, as every __shared__ variable does, and so tells where that is.
thread_local char anchor;

// ---- Reports ---------------------------------------------------------------------------------------------------------

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string text(const char* format, ...) {
    char buffer[512];
    va_list list;
    va_start(list, format);
    vsnprintf(buffer, sizeof buffer, format, list);
    va_end(list);
    return buffer;
}

void write_report(const char* check, const Thread* thread, const char* what) {
    if (failed) return;  // the first error is the one that explains the others
    failed = true;
    int used = snprintf(report, sizeof report, "%s: kernel %s, ", check, kernels[launch->kernel].name);
    if (thread) {
        describe_thread(thread->block->number * (blockDim.x * blockDim.y * blockDim.z) + thread->number, report + used, 96);
        used += strlen(report + used);
        used += snprintf(report + used, sizeof report - used, ": ");
    }
    snprintf(report + used, sizeof report - used, "%s", what);
}

const char* name(Collective kind) {
    switch (kind) {
        case Collective::syncwarp: return "__syncwarp";
        case Collective::shuffle: return "__shfl_sync";
        case Collective::shuffle_up: return "__shfl_up_sync";
        case Collective::shuffle_down: return "__shfl_down_sync";
        case Collective::shuffle_xor: return "__shfl_xor_sync";
        case Collective::ballot: return "a vote";
        case Collective::match: return "__match_any_sync";
    }
    return "";
}

std::string where(const Thread& thread) {
    switch (thread.state) {
        case State::ended: return "ended";
        case State::at_barrier:
            return text("waits at %s (%s:%d)", thread.barrier == Barrier::cluster ? "cluster_sync" : "__syncthreads", thread.file, thread.line);
        case State::at_collective:
            return text("waits at %s with mask 0x%08x (%s:%d)", name(thread.collective), thread.mask, thread.file, thread.line);
        case State::spinning: return text("spins (%s:%d)", thread.file, thread.line);
        case State::ready: return "can run";
    }
    return "";
}

// Who waits where: one line a place, with the first thread seen there and how many there are. Returns a thread that waits.
const Thread* describe_waiting(std::string& message) {
    const Thread* waiting = nullptr;
    std::map<std::string, std::pair<const Thread*, unsigned>> places;
    for (const Block& block : blocks)
        for (const Thread* thread = block.threads; block.running && thread < block.threads + blockDim.x * blockDim.y * blockDim.z; ++thread) {
            auto& place = places[where(*thread)];
            if (!place.second++) place.first = thread;
            if (!waiting && thread->state != State::ended) waiting = thread;
        }
    for (const auto& [what, place] : places) {
        const Index b = place.first->block->index, t = place.first->index;
        message += text("\n  block (%u, %u, %u) thread (%u, %u, %u)", b.x, b.y, b.z, t.x, t.y, t.z);
        if (place.second > 1) message += text(" and %u more", place.second - 1);
        message += " " + what;
    }
    return waiting;
}

void report_waiting(const char* check, const char* what) {
    std::string message = what;
    const Thread* waiting = describe_waiting(message);
    write_report(check, waiting, message.c_str());
}

// ---- Fibers and their order --------------------------------------------------------------------------------------------

uint64_t random_number() {  // splitmix64
    uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

size_t random_below(size_t n) { return static_cast<size_t>((static_cast<unsigned __int128>(random_number()) * n) >> 64); }

template <class T>
void shuffle(std::vector<T>& list) {
    for (size_t n = list.size(); n > 1; --n) std::swap(list[n - 1], list[random_below(n)]);
}

void back_to_scheduler() {
    Thread* self = current;
    switch_fiber(self->fiber, scheduler);
}

// What the current thread brings to a barrier or collective is to be set before, for the report.
void begin_wait(State state, const char* file, int line) {
    Thread& self = *current;
    self.state = state;
    self.file = file;
    self.line = line;
    if (self.waits++ < launch->most_waits) return;
    write_report("endless", &self,
                 text("has waited %llu times in this launch and now %s: an endless loop, unless execution(most_waits=...) is too small",
                      static_cast<unsigned long long>(launch->most_waits), where(self).c_str()).c_str());
}

void make_ready(Thread& thread) {
    thread.state = State::ready;
    thread.block->ready.push_back(&thread);
}

unsigned threads_per_block() { return blockDim.x * blockDim.y * blockDim.z; }

// ---- Barriers and warp collectives --------------------------------------------------------------------------------------

// The blocks that are alive with a block in its cluster.
struct Cluster {
    Block* first;
    unsigned blocks;

    explicit Cluster(const Block& member) : blocks(kernels[launch->kernel].cluster) {
        first = &::host::blocks[&member - ::host::blocks.data() - member.index.x % blocks];
    }
    Block* begin() const { return first; }
    Block* end() const { return first + blocks; }
};

void pass_barrier(Block& block) {
    for (Thread* t = block.threads; t < block.threads + threads_per_block(); ++t) make_ready(*t);
    block.at_barrier = 0;
    ++block.epoch;
    ++progress;
}

// Called when all threads of a block came to a barrier of its cluster, or ended.
void check_cluster_barrier(const Block& member) {
    const Cluster cluster(member);
    const Block *ended = nullptr, *waiting = nullptr;
    bool all = true;
    for (const Block& block : cluster) {
        if (!block.running) ended = &block;
        if (block.at_cluster_barrier) waiting = &block;
        all = all && block.at_cluster_barrier;
    }
    if (ended && waiting) {
        const Index b = ended->index;
        return write_report("barrier", waiting->threads,
                            text("a barrier of a cluster that cannot complete: %s, but block (%u, %u, %u) ended without coming to it",
                                 where(*waiting->threads).c_str(), b.x, b.y, b.z).c_str());
    }
    if (!all) return;
    const uint64_t goal = uint64_t{cluster.first->number} << 32 | (cluster.first->epoch + 1);
    for (Block& block : cluster) {
        block.at_cluster_barrier = false;
        pass_barrier(block);
        recorder_released(block.number, block.epoch, cluster.first, goal);
    }
    for (const Block& block : cluster) recorder_acquired(block.number, cluster.first, goal);
}

// Called when a thread came to the barrier or ended.
void check_barrier(Block& block) {
    if (!block.at_barrier || block.at_barrier < block.running) return;
    const unsigned n = threads_per_block();
    const Thread* first = nullptr;
    int count = 0;
    for (Thread* t = block.threads; t < block.threads + n; ++t) {
        if (t->state == State::ended) {
            report_waiting("barrier", "a barrier that cannot complete: some threads of the block ended without coming to it");
            return;
        }
        if (!first) first = t;
        if (t->line != first->line || t->barrier != first->barrier || strcmp(t->file, first->file) != 0) {
            report_waiting("barrier", "threads of one block wait at different barriers");
            return;
        }
        count += t->value != 0;
    }
    if (first->barrier == Barrier::cluster) {
        block.at_cluster_barrier = true;
        return check_cluster_barrier(block);
    }
    const int result = first->barrier == Barrier::all ? count == int(n) : first->barrier == Barrier::any ? count > 0 : count;
    for (Thread* t = block.threads; t < block.threads + n; ++t) t->result = result;
    pass_barrier(block);
}

struct Warp {
    Thread* lanes;
    unsigned existing;  // mask of the lanes that the block has

    explicit Warp(const Thread& member) {
        lanes = member.block->threads + member.warp() * warp_size;
        const unsigned n = threads_per_block() - member.warp() * warp_size;
        existing = n >= warp_size ? all_lanes : (1u << n) - 1;
    }
};

// The lane whose value a shuffle takes, or the caller's own where the source lies outside its segment of `width` lanes.
int source_lane(const Thread& t) {
    const int lane = t.lane(), segment = lane & ~(t.width - 1);
    int source = lane;
    switch (t.collective) {
        case Collective::shuffle: source = segment + (t.lane_argument & (t.width - 1)); break;
        case Collective::shuffle_up: source = lane - t.lane_argument; break;
        case Collective::shuffle_down: source = lane + t.lane_argument; break;
        default: source = lane ^ t.lane_argument; break;
    }
    // __shfl_xor_sync may read an earlier segment, not a later one; the others stay in their own.
    if (source >= segment + t.width || (t.collective != Collective::shuffle_xor && source < segment) || source < 0) return lane;
    return source;
}

void finish_collective(const Warp& warp, unsigned mask) {
    const Collective kind = warp.lanes[__builtin_ctz(mask)].collective;
    unsigned ballot = 0;
    for (unsigned lane = 0; lane < warp_size; ++lane)
        if (mask >> lane & 1 && warp.lanes[lane].value) ballot |= 1u << lane;
    for (unsigned lane = 0; lane < warp_size; ++lane) {
        if (!(mask >> lane & 1)) continue;
        Thread& t = warp.lanes[lane];
        if (kind == Collective::ballot) {
            t.result = ballot;
        } else if (kind == Collective::match) {
            t.result = 0;
            for (unsigned other = 0; other < warp_size; ++other)
                if (mask >> other & 1 && warp.lanes[other].value == t.value) t.result |= 1u << other;
        } else if (kind != Collective::syncwarp) {
            const unsigned source = source_lane(t);
            if (!(mask >> source & 1)) {
                write_report("lane", &t, text("%s reads lane %u, which takes no part (mask 0x%08x) (%s:%d)", name(kind), source, t.mask, t.file, t.line).c_str());
                return;
            }
            t.result = warp.lanes[source].value;
        }
    }
    recorder_collective(kind, warp.lanes->block->number, warp.lanes->warp(), mask, mask == warp.existing);
    for (unsigned lane = 0; lane < warp_size; ++lane)
        if (mask >> lane & 1) make_ready(warp.lanes[lane]);
    ++progress;
}

// Called when `member` came to a collective; or when it ended, which those who wait for it will never know otherwise.
void check_collectives(Thread& member) {
    const Warp warp(member);
    for (unsigned lane = 0; lane < warp_size; ++lane) {
        if (!(warp.existing >> lane & 1)) continue;
        Thread& t = warp.lanes[lane];
        const bool concerned = member.state == State::ended ? t.mask >> member.lane() & 1 : &t == &member;
        if (t.state != State::at_collective || !concerned) continue;
        const unsigned named = t.mask & warp.existing;
        unsigned here = 0;
        for (unsigned other = 0; other < warp_size; ++other) {
            if (!(named >> other & 1)) continue;
            const Thread& o = warp.lanes[other];
            if (o.state == State::ended) {
                write_report("collective", &t, text("%s with mask 0x%08x (%s:%d) cannot complete: lane %u ended without coming to it",
                                                    name(t.collective), t.mask, t.file, t.line, other).c_str());
                return;
            }
            if (o.state == State::at_collective && o.mask == t.mask && o.collective == t.collective) here |= 1u << other;
        }
        if (here == named) return finish_collective(warp, named);
    }
}

// ---- Blocks ----------------------------------------------------------------------------------------------------------

void fiber_main() {
    arrived_on_fiber(true);
    const Kernel& kernel = kernels[launch->kernel];
    kernel.call(kernel.function, launch->arguments);
    Thread& self = *current;
    self.state = State::ended;
    --self.block->running;
    ++progress;
    check_collectives(self);
    if (!failed) check_barrier(*self.block);
    if (!failed && !self.block->running) {
        recorder_leave_block(self.block->number);
        check_cluster_barrier(*self.block);
    }
    back_to_scheduler();
    __builtin_unreachable();
}

char* allocate_dynamic_shared() {
#if HOST_ASAN
    const size_t bytes = launch->shared_bytes;
#else
    const size_t bytes = launch->shared_bytes + red_zone_bytes;
#endif
    if (!bytes) return nullptr;
    void* memory = nullptr;
    if (posix_memalign(&memory, 128, bytes)) abort();
    memset(memory, fresh, bytes);
    return static_cast<char*>(memory);
}

void start_block(Block& block, uint32_t number, size_t first_thread) {
    block.number = number;
    block.index = {number % gridDim.x, number / gridDim.x % gridDim.y, number / gridDim.x / gridDim.y};
    block.threads = &threads[first_thread];
    block.running = threads_per_block();
    block.at_barrier = 0;
    block.at_cluster_barrier = false;
    block.epoch = 0;
    block.ready.clear();
    block.spinning.clear();
    for (uint32_t i = 0; i < threads_per_block(); ++i) {
        Thread& t = block.threads[i];
        t.block = &block;
        t.number = i;
        t.waits = 0;
        t.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
        t.fiber.stack = stacks + (first_thread + i) * stack_bytes;
        t.fiber.stack_bytes = stack_bytes;
        start_fiber(t.fiber, fiber_main);
        make_ready(t);
    }
    block.dynamic_shared = allocate_dynamic_shared();
    recorder_start_block(number);
}

void end_block(Block& block) {
#if !HOST_ASAN
    const char* end = block.dynamic_shared + launch->shared_bytes;
    for (size_t i = 0; i < red_zone_bytes; ++i)
        if (static_cast<unsigned char>(end[i]) != fresh) {
            write_report("bounds", block.threads, text("the block wrote %zu bytes behind its %zu bytes of dynamic shared memory", i,
                                                       size_t(launch->shared_bytes)).c_str());
            break;
        }
#endif
    free(block.dynamic_shared);
    block.dynamic_shared = nullptr;
    recorder_end_block(block.number, block.epoch);
}

// Runs the block's threads until each of them waits, spins or has ended.
void run_block(Block& block) {
    blockIdx = block.index;
    recorder_enter_block(block.number, static_shared, static_shared_bytes, block.dynamic_shared, launch->shared_bytes);
    while (!block.ready.empty() && !failed) {
        std::swap(block.ready.back(), block.ready[random_below(block.ready.size())]);
        current = block.ready.back();
        block.ready.pop_back();
        threadIdx = current->index;
        switches = switches + 1;
        switch_fiber(scheduler, current->fiber);
        current = nullptr;
    }
    std::swap(block.ready, block.spinning);  // whose state stays "spinning", for reports
}

// Runs blocks that are alive together, round by round, until all have ended.
void run_together(std::vector<Block*> alive) {
    uint64_t progress_before = progress;
    for (int idle_rounds = 0; !alive.empty() && !failed;) {
        shuffle(alive);
        bool any_ran = false;
        for (Block* block : alive) {
            if (block->ready.empty()) continue;
            any_ran = true;
            if (block->static_shared) memcpy(static_shared, block->static_shared.get(), static_shared_bytes);
            run_block(*block);
            if (block->static_shared) memcpy(block->static_shared.get(), static_shared, static_shared_bytes);
            if (failed) return;
        }
        alive.erase(std::remove_if(alive.begin(), alive.end(), [](Block* b) { return !b->running; }), alive.end());
        if (!any_ran) return report_waiting("deadlock", "no thread can go on");
        idle_rounds = progress == progress_before ? idle_rounds + 1 : 0;
        progress_before = progress;
        if (idle_rounds > idle_rounds_allowed)
            return report_waiting("livelock", "threads spin for something that never comes");
    }
}

void run_all_blocks() {
    const uint32_t block_count = gridDim.x * gridDim.y * gridDim.z;
    const uint32_t count = blocks.size();  // that are alive together: all, or those of a cluster
    std::vector<uint32_t> order(block_count / count);
    for (uint32_t i = 0; i < order.size(); ++i) order[i] = i;
    shuffle(order);
    for (uint32_t number : order) {
        std::vector<Block*> alive;
        for (uint32_t i = 0; i < count; ++i) {
            start_block(blocks[i], number * count + i, size_t{i} * threads_per_block());
            if (count > 1) {
                blocks[i].static_shared.reset(new char[static_shared_bytes]);
                memset(blocks[i].static_shared.get(), fresh, static_shared_bytes);
            } else {
                blocks[i].static_shared.reset();
                memset(static_shared, fresh, static_shared_bytes);
            }
            alive.push_back(&blocks[i]);
        }
        run_together(alive);
        for (Block& block : blocks) end_block(block);
        if (failed) return;
    }
}

void release_stacks() {
    if (!stacks) return;
    // Frames of fibers that never returned are still poisoned, and whatever the system maps here next would inherit that.
    unpoison(stacks, stack_count * stack_bytes);
    munmap(stacks, stack_count * stack_bytes);
    stacks = nullptr;
    stack_count = 0;
}

void reserve_stacks(size_t count) {
    if (count <= stack_count) return;
    release_stacks();
    // The pages of a stack are taken from the system when they are first touched. A deep stack runs into the one below;
    // the kernels' frames are small, and a GPU has no such stacks either.
    void* memory = mmap(nullptr, count * stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) abort();
    stacks = static_cast<char*>(memory);
    stack_count = count;
}

// The library's thread-local segment, which holds exactly the __shared__ variables and `anchor`. Not by dl_iterate_phdr(), whose
// lock another thread may hold for ever after a fork.
void find_segment() {
    *static_cast<volatile char*>(&anchor) = 0;  // have this thread's instance made
    Dl_info info;
    void *map, *segment;
    if (!dladdr1(reinterpret_cast<void*>(find_segment), &info, &map, RTLD_DL_LINKMAP)) abort();
    if (dlinfo(map, RTLD_DI_TLS_DATA, &segment) || !segment) abort();
    anchor_offset = &anchor - static_cast<char*>(segment);
    const char* base = static_cast<char*>(info.dli_fbase);
    const auto* file = reinterpret_cast<const ElfW(Ehdr)*>(base);
    const auto* headers = reinterpret_cast<const ElfW(Phdr)*>(base + file->e_phoff);
    for (int i = 0; i < file->e_phnum; ++i)
        if (headers[i].p_type == PT_TLS) static_shared_bytes = headers[i].p_memsz;
}

// ---- Signals: faults in a kernel, and fibers that never wait ----------------------------------------------------------

constexpr int watchdog_signal = SIGURG;  // ignored by default, so a late one harms nobody

void on_signal(int signal, siginfo_t* info, void*) {
    if (!in_launch || !current || !pthread_equal(pthread_self(), launching_thread)) return;
    if (signal == watchdog_signal) {
        fail("endless", "runs on and on without coming to a barrier, a warp collective or spin_pause(): an endless loop, or a spin without spin_pause()");
    } else if (signal == SIGFPE) {
        fail("undefined", "an integer division by zero");
    } else if (signal == SIGILL) {
        fail("undefined", "a trap that the compiler set where the program's behaviour is undefined");
    } else {
        fail("bounds", "an invalid address, %p", info->si_addr);
    }
}

#if HOST_ASAN
constexpr int signals[] = {watchdog_signal};  // AddressSanitizer reports faults itself
#else
constexpr int signals[] = {watchdog_signal, SIGSEGV, SIGBUS, SIGFPE, SIGILL};
#endif
constexpr int signal_count = sizeof signals / sizeof *signals;

struct sigaction handlers_before[signal_count];
volatile bool handlers_replaced;

void restore_handlers() {
    for (int i = 0; i < signal_count; ++i) sigaction(signals[i], &handlers_before[i], nullptr);
    handlers_replaced = false;
}

void replace_handlers() {
    for (int i = 0; i < signal_count; ++i) sigaction(signals[i], nullptr, &handlers_before[i]);
    handlers_replaced = true;  // from here on restore_handlers() undoes whatever has been done, also after a fork
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;  // the handler switches fibers and never returns
    for (int i = 0; i < signal_count; ++i) sigaction(signals[i], &action, nullptr);
}

void* watch(void*) {
    uint64_t seen = 0;
    double stalled = 0;
    constexpr double period = 0.1;
    for (;;) {
        usleep(static_cast<useconds_t>(period * 1e6));
        stalled = in_launch && switches == seen ? stalled + period : 0;
        seen = switches;
        if (stalled && stalled > stall_seconds) pthread_kill(launching_thread, watchdog_signal);
    }
}

bool watched;  // whether the watchdog runs

void start_watchdog() {
    if (watched) return;
    pthread_t thread;
    if (pthread_create(&thread, nullptr, watch, nullptr)) abort();
    pthread_detach(thread);
    watched = true;
}

// In the child of a fork, which has one thread. Another one may have been amid a launch in the parent: what it was changing is
// replaced and never freed.
void after_fork() {
    if (handlers_replaced) restore_handlers();
    new (&threads) std::vector<Thread>;
    new (&blocks) std::vector<Block>;
    stacks = nullptr;
    stack_count = 0;
    current = nullptr;
    in_launch = false;
    watched = false;
    recorder_after_fork();
}

__attribute__((constructor)) void at_load() {
    find_segment();
    pthread_atfork(nullptr, nullptr, after_fork);
}

#if HOST_ASAN
void on_asan_report(const char* asan_report) {
    if (in_launch && current) write_report("bounds", current, asan_report);
}
#endif

}  // namespace

// ---- What kernels call -------------------------------------------------------------------------------------------------

int barrier(Barrier kind, int predicate, const char* file, int line) {
    Thread& self = *current;
    self.barrier = kind;
    self.value = predicate != 0;
    begin_wait(State::at_barrier, file, line);
    ++self.block->at_barrier;
    check_barrier(*self.block);
    back_to_scheduler();
    return static_cast<int>(self.result);
}

uint64_t collective(Collective kind, unsigned mask, uint64_t value, int lane, int width, const char* file, int line) {
    Thread& self = *current;
    if (!(mask >> self.lane() & 1))
        fail("collective", "%s with mask 0x%08x, which does not name the calling lane %u (%s:%d)", name(kind), mask, self.lane(), file, line);
    self.collective = kind;
    self.mask = mask;
    self.value = value;
    self.lane_argument = lane;
    self.width = width;
    begin_wait(State::at_collective, file, line);
    check_collectives(self);
    back_to_scheduler();
    return self.result;
}

unsigned active_mask() { return 1u << current->lane(); }

void spin_pause(const char* file, int line) {
    current->block->spinning.push_back(current);
    recorder_spin();
    begin_wait(State::spinning, file, line);
    back_to_scheduler();
}

uint64_t most_polls() { return launch->most_polls; }

void* dynamic_shared() { return current->block->dynamic_shared; }

const void* shared_of_block(const void* address, size_t bytes, unsigned rank, const char* file, int line) {
    const Cluster cluster(*current->block);
    if (rank >= cluster.blocks) fail("bounds", "block %u of a cluster of %u (%s:%d)", rank, cluster.blocks, file, line);
    const Block& other = cluster.first[rank];
    const Index b = other.index;
    const ptrdiff_t offset = static_cast<const char*>(address) - current->block->dynamic_shared;
    if (offset < 0 || offset + bytes > launch->shared_bytes)
        fail("bounds", "what block (%u, %u, %u) has at byte %td of its %zu bytes of dynamic shared memory (%s:%d)", b.x, b.y, b.z, offset,
             size_t(launch->shared_bytes), file, line);
    if (!other.running) fail("conflict", "reads the shared memory of block (%u, %u, %u), which has ended (%s:%d)", b.x, b.y, b.z, file, line);
    return other.dynamic_shared + offset;
}

void note_progress() { ++progress; }

void released(const void* word, uint64_t goal) { recorder_released(current->block->number, current->block->epoch, word, goal); }

void acquired(const void* word, uint64_t goal) { recorder_acquired(current->block->number, word, goal); }

void note_access(const void* address, size_t bytes, bool is_write, Access access, const void* pc) {
    recorder_access(address, bytes, is_write, access, pc);
}

void fail(const char* check, const char* format, ...) {
    char what[2048];
    va_list list;
    va_start(list, format);
    vsnprintf(what, sizeof what, format, list);
    va_end(list);
    write_report(check, current, what);
    back_to_scheduler();  // which sees that the launch failed and lets all fibers be
    __builtin_unreachable();
}

Position position() {
    const Thread& t = *current;
    return {t.block->number * threads_per_block() + t.number, t.block->number, t.warp(), t.lane(), t.block->epoch};
}

bool in_own_stack(const void* address) {
    const char* a = static_cast<const char*>(address);
    return a >= current->fiber.stack && a < current->fiber.stack + stack_bytes;
}

bool in_any_stack(const void* address) {
    const char* a = static_cast<const char*>(address);
    return a >= stacks && a < stacks + stack_count * stack_bytes;
}

void describe_thread(uint32_t thread, char* buffer, size_t capacity) {
    const uint32_t b = thread / threads_per_block(), t = thread % threads_per_block();
    snprintf(buffer, capacity, "block (%u, %u, %u) thread (%u, %u, %u)", b % gridDim.x, b / gridDim.x % gridDim.y,
             b / gridDim.x / gridDim.y, t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y);
}

}  // namespace host

// ---- What Python calls ----------------------------------------------------------------------------------------------

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int gpurnn_host_kernel_count() { return host::kernel_count; }
EXPORT const char* gpurnn_host_kernel_name(int i) { return host::kernels[i].name; }
EXPORT const char* gpurnn_host_kernel_parameters(int i) { return host::kernels[i].parameters; }

// Runs one launch to its end, one at a time in a process. Returns 0, or 1 with "check: message" in `message`.
EXPORT int gpurnn_host_launch(const host::Launch* what, char* message, size_t capacity) {
    using namespace host;
    launch = what;
    gridDim = {what->grid[0], what->grid[1], what->grid[2]};
    blockDim = {what->block[0], what->block[1], what->block[2]};
    const size_t alive = launch->cooperative ? size_t{gridDim.x} * gridDim.y * gridDim.z : kernels[launch->kernel].cluster;
    failed = false;
    random_state = what->seed;
    launching_thread = pthread_self();
    stall_seconds = launch->stall_seconds;
    static_shared = &anchor - anchor_offset;
    reserve_stacks(alive * threads_per_block());
    threads.resize(alive * threads_per_block());
    blocks.resize(alive);
    recorder_begin(what->regions, what->region_count, gridDim.x * gridDim.y * gridDim.z, threads_per_block());
    start_watchdog();
#if HOST_ASAN
    __asan_set_error_report_callback(on_asan_report);
#endif
    replace_handlers();
    in_launch = true;
    run_all_blocks();
    in_launch = false;
    restore_handlers();
    recorder_end();
    if (stack_count > stacks_kept) release_stacks();
    if (failed) snprintf(message, capacity, "%s", report);
    return failed;
}
