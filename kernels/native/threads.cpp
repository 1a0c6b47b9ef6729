// The process's worker threads. They sleep between calls, since one that spins takes a core from whoever needs it.
//
// One call has them at a time; another that comes meanwhile runs on its own thread alone. A forked child has none of
// its parent's threads, and makes its own.
#include "native/threads.h"

#include <chrono>
#include <new>
#include <system_error>
#include <thread>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;

struct Pool {
    std::mutex in_use;  // by the call that has the workers

    std::mutex mutex;  // of all below, except that what is atomic is also spun upon
    std::condition_variable wake, ended;
    std::atomic<unsigned> calls{0};  // how many there were
    std::atomic<int> joined{0};      // threads of this call, with the caller's own
    std::atomic<int> count{0};       // of threads that run it, once that is known; zero before
    std::atomic<int> running{0};     // of the others
    int wanted = 0, workers = 0;
    bool open = false;  // to those that want to join
    bool over = false;  // all workers are to end
    Work work = nullptr;
    void* context = nullptr;
#if defined(__linux__)
    int avoided = -1;  // the processor that the workers keep off, on which the caller runs
    pthread_t threads[1024];
#endif
};

constexpr int spins = 1000;  // about 40 microseconds
constexpr int most_workers = 1023;

Pool* pool = new Pool;
std::atomic<int> limit{0};

void serve(Pool* own) {
    unsigned seen = 0;
    for (;;) {
        for (int spin = 0; spin < spins && own->calls.load(std::memory_order_acquire) == seen; ++spin) pause_briefly();
        int index;
        Work work;
        void* context;
        {
            std::unique_lock<std::mutex> lock(own->mutex);
            own->wake.wait(lock, [&] { return own->over || (own->open && own->calls.load() != seen); });
            if (own->over) {
                if (--own->workers == 0) own->ended.notify_all();
                return;
            }
            seen = own->calls.load();
            if (own->joined.load() == own->wanted) continue;
            index = own->joined.load();
            work = own->work;
            context = own->context;
            own->running.fetch_add(1);
            own->joined.fetch_add(1, std::memory_order_release);
        }
        int count;
        for (int spin = 0; (count = own->count.load(std::memory_order_acquire)) == 0; ++spin) {
            if (spin < 64 * spins) {
                pause_briefly();
            } else {
                std::this_thread::yield();
            }
        }
        work(context, index, count);
        const std::lock_guard<std::mutex> lock(own->mutex);
        if (own->running.fetch_sub(1, std::memory_order_acq_rel) == 1) own->ended.notify_all();
    }
}

// Makes workers up to `wanted` threads with the caller's own; there may be fewer where the system gives no more.
void recruit(Pool* own, int wanted) {
    while (own->workers + 1 < wanted && own->workers < most_workers) {
#if defined(__cpp_exceptions)
        try {
#endif
            std::thread worker(serve, own);
#if defined(__linux__)
            own->threads[own->workers] = worker.native_handle();
            own->avoided = -1;
#endif
            worker.detach();
            ++own->workers;
#if defined(__cpp_exceptions)
        } catch (const std::system_error&) {
            return;
        }
#endif
    }
}

#if defined(__linux__)
// After some milliseconds of sleep, Linux often wakes a worker on the caller's processor, where it waits for the
// caller's time slice to end. So workers may run on all of the process's processors except that one.
void keep_off_the_callers_processor(Pool* own) {
    const int here = sched_getcpu();
    if (here == own->avoided) return;
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < 2) return;
    CPU_CLR(here, &allowed);
    for (int i = 0; i < own->workers; ++i) pthread_setaffinity_np(own->threads[i], sizeof allowed, &allowed);
    own->avoided = here;
}
#endif

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void gpurnn_run(Work work, void* context, int most, double patience) {
    Pool* const own = pool;
    if (most < 2 || !own->in_use.try_lock()) {
        work(context, 0, 1);
        return;
    }
    {
        const std::lock_guard<std::mutex> lock(own->mutex);
        recruit(own, most);
#if defined(__linux__)
        keep_off_the_callers_processor(own);
#endif
        own->wanted = most < own->workers + 1 ? most : own->workers + 1;
        own->joined.store(1);
        own->count.store(0);
        own->work = work;
        own->context = context;
        own->open = true;
        own->calls.fetch_add(1, std::memory_order_release);
    }
    own->wake.notify_all();
    const auto deadline = Clock::now() + std::chrono::duration<double, std::micro>(patience);
    while (own->joined.load(std::memory_order_acquire) < own->wanted) {
        pause_briefly();
        if (Clock::now() >= deadline) break;
    }
    int count;
    {
        const std::lock_guard<std::mutex> lock(own->mutex);
        own->open = false;
        count = own->joined.load();
        own->count.store(count, std::memory_order_release);
    }
    work(context, 0, count);
    for (int spin = 0; spin < spins && own->running.load(std::memory_order_acquire) > 0; ++spin) pause_briefly();
    {
        std::unique_lock<std::mutex> lock(own->mutex);
        own->ended.wait(lock, [&] { return own->running.load() == 0; });
    }
    own->in_use.unlock();
}

// Ends the workers; the next call makes new ones.
EXPORTED void gpurnn_release() {
    Pool* const own = pool;
    const std::lock_guard<std::mutex> call(own->in_use);
    std::unique_lock<std::mutex> lock(own->mutex);
    own->over = true;
    own->wake.notify_all();
    own->ended.wait(lock, [&] { return own->workers == 0; });
    own->over = false;
}

// In the child of a fork: the parent's pool is as some of its threads left it, and stays so.
EXPORTED void gpurnn_forget() { pool = new Pool; }

// The most threads of a call, which tools that limit the threads of a process's libraries read and write; 0: no limit.
EXPORTED int gpurnn_get_num_threads() { return limit.load(); }
EXPORTED void gpurnn_set_num_threads(int count) { limit.store(count); }

// Worker threads that there are.
EXPORTED int gpurnn_workers() {
    const std::lock_guard<std::mutex> lock(pool->mutex);
    return pool->workers;
}
