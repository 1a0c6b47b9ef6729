// The process's worker threads. They sleep between calls, since one that spins takes a core from whoever needs it; but not
// between calls that follow at once.
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

// A call as its threads see it, in one word: its number, how many more may join it, and how many have, with the caller.
using Call = uint64_t;
constexpr Call a_place = 1 << 16, all_places = 0xffffull << 16, joined_part = 0xffff;
unsigned number_of(Call call) { return unsigned(call >> 32); }
Call places_of(Call call) { return call & all_places; }
int joined_of(Call call) { return int(call & joined_part); }

struct Pool {
    std::mutex in_use;  // by the call that has the workers

    std::atomic<Call> call{0};
    std::atomic<int> count{0};     // of threads that run it, once that is known; zero before
    std::atomic<int> finished{0};  // workers that have done their part of it
    Work work = nullptr;           // these two are read by who has joined
    void* context = nullptr;
    Clock::time_point last;  // when the last call ended

    std::atomic<int> awake{0};  // workers that look out for a call
    std::mutex mutex;           // of those who sleep, and of what is below
    std::condition_variable wake, ended;
    std::atomic<int> sleepers{0};
    std::atomic<bool> caller_sleeps{false};
    int workers = 0;
    bool over = false;  // all workers are to end
#if defined(__linux__)
    int avoided = -1;  // the processor that the workers keep off, on which the caller runs
    pthread_t threads[1024];
#endif
};

constexpr int spins = 1000;  // 20 to 40 microseconds
constexpr auto looking_out = std::chrono::microseconds(50);  // of a worker, for the next call, before it sleeps
constexpr int most_workers = 1023;

Pool* pool = new Pool;
std::atomic<int> limit{0};

// The index of the calling thread among those of the call that is there now, which is not `before`; -1 if that has all.
int join(Pool* own, unsigned before) {
    Call call = own->call.load(std::memory_order_acquire);
    while (number_of(call) != before && places_of(call)) {
        if (own->call.compare_exchange_weak(call, call - a_place + 1, std::memory_order_acq_rel)) return joined_of(call);
    }
    return -1;
}

void serve(Pool* own) {
    unsigned done = 0, seen = 0;  // the last call that it joined, and that it knows of
    for (;;) {
        own->awake.fetch_add(1);
        const auto enough = Clock::now() + looking_out;
        for (int spin = 1; number_of(own->call.load(std::memory_order_relaxed)) == seen; ++spin) {
            pause_briefly();
            if (spin % 16 == 0 && Clock::now() >= enough) break;
        }
        own->awake.fetch_sub(1);
        int index = join(own, done);
        if (index < 0) {
            // There is none, or it has ended already. Another one may follow soon.
            std::unique_lock<std::mutex> lock(own->mutex);
            own->sleepers.fetch_add(1);
            if (!own->over && number_of(own->call.load()) == seen) own->wake.wait(lock);
            own->sleepers.fetch_sub(1);
            if (own->over) {
                if (--own->workers == 0) own->ended.notify_all();
                return;
            }
            lock.unlock();
            index = join(own, done);
            if (index < 0) {
                seen = number_of(own->call.load());
                continue;
            }
        }
        done = seen = number_of(own->call.load());  // which stays while there are who have joined it
        int count;
        for (int spin = 0; (count = own->count.load(std::memory_order_acquire)) == 0; ++spin) {
            if (spin < 64 * spins) {
                pause_briefly();
            } else {
                std::this_thread::yield();
            }
        }
        own->work(own->context, index, count);
        own->finished.fetch_add(1);
        if (own->caller_sleeps.load()) {
            const std::lock_guard<std::mutex> lock(own->mutex);
            own->ended.notify_all();
        }
    }
}

// Lets workers join a new call of `most` threads, which have `count` if that is known already.
void open(Pool* own, Work work, void* context, int most, int count) {
    const int wanted = most < own->workers + 1 ? most : own->workers + 1;
    own->finished.store(0);
    own->count.store(count);
    own->work = work;
    own->context = context;
    const Call number = Call(number_of(own->call.load()) + 1) << 32;
    own->call.store(number + Call(wanted - 1) * a_place + 1);
    if (own->sleepers.load() == 0) return;
    { const std::lock_guard<std::mutex> lock(own->mutex); }
    own->wake.notify_all();
}

// Lets nobody join any more, and returns how many have.
int close(Pool* own) { return joined_of(own->call.fetch_and(~all_places, std::memory_order_acq_rel)); }

// Waits until the workers among so many threads have done their parts.
void wait_for(Pool* own, int joined) {
    const auto have_ended = [&] { return own->finished.load() == joined - 1; };
    for (int spin = 0; spin < spins && !have_ended(); ++spin) pause_briefly();
    if (!have_ended()) {
        std::unique_lock<std::mutex> lock(own->mutex);
        own->caller_sleeps.store(true);
        own->ended.wait(lock, have_ended);
        own->caller_sleeps.store(false);
    }
    own->last = Clock::now();
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

// Whether it pays to have threads for a call that takes so many microseconds alone, and begins without them. Those that
// are awake come at once. One that sleeps is late, but in time for the next call, if calls come one after another.
bool is_worth_threads(const Pool* own, double alone) {
    if (alone >= 300) return true;
    if (alone < 15) return false;
    return own->awake.load() > 0 || Clock::now() - own->last < std::chrono::microseconds(100);
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void gpurnn_run(Work work, void* context, int most, double patience) {
    Pool* const own = pool;
    if (most < 2 || !own->in_use.try_lock()) {
        work(context, 0, 1);
        return;
    }
    const bool waits = patience >= 0;
    if (!waits && !is_worth_threads(own, -patience)) {
        work(context, 0, 1);
        own->last = Clock::now();
        own->in_use.unlock();
        return;
    }
    if (most - 1 > own->workers) {
        const std::lock_guard<std::mutex> lock(own->mutex);
        recruit(own, most);
    }
#if defined(__linux__)
    keep_off_the_callers_processor(own);
#endif
    open(own, work, context, most, waits ? 0 : most);
    int joined;
    if (waits) {
        const auto deadline = Clock::now() + std::chrono::duration<double, std::micro>(patience);
        const auto have_come = [&] { return places_of(own->call.load(std::memory_order_relaxed)) == 0; };
        while (!have_come() && Clock::now() < deadline) pause_briefly();
        joined = close(own);
        own->count.store(joined, std::memory_order_release);
        work(context, 0, joined);
    } else {
        work(context, 0, most);
        joined = close(own);
    }
    wait_for(own, joined);
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
