// How the threads of a call meet, and subnormal numbers within a call.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

inline void pause_briefly() {
#if defined(__SSE2__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// What a call hands to its threads: `work(context, index, count)` on each of `count` threads, index 0 on the caller's.
using Work = void (*)(void* context, int index, int count);

// Runs `work` on the calling thread and on up to most - 1 others, and returns when all have ended. Threads that have
// not begun after `patience` microseconds, or have other work, are left out. The result must not depend on their number.
//
// Where `patience` is negative, the calling thread begins at once, and others join it until it has ended. Any of the
// `count` may be missing then, except the first, so they take their shares of the work one after another; less `patience`
// are the microseconds that one thread would take, by which it is decided whether others are called at all.
using Run = void (*)(Work work, void* context, int most, double patience);

// The threads that a call may have.
struct Team {
    Run run;
    int64_t most;
    double patience;  // microseconds that the call waits for them, negative to go by its work

    // Runs `work` on as many of them as have something to do for long enough that waking them pays; `alone` are the
    // microseconds that one would take, roughly.
    void share(double alone, Work work, void* context) const {
        if (patience >= 0) {
            run(work, context, int(most), patience);
        } else {
            const int worth = alone < 300 ? 1 : alone / 150 < double(most) ? int(alone / 150) : int(most);
            run(work, context, worth, 50 + alone / 4);
        }
    }
    // Runs `work`, whose threads take their shares one after another, on as many as come while it runs.
    void share_as_they_come(double alone, Work work, void* context) const {
        run(work, context, int(most), patience >= 0 ? patience : -alone);
    }
    // The same as `share` for a function of (index, count).
    template <class Function>
    void share(double alone, const Function& function) const {
        share(
            alone,
            [](void* context, int index, int count) { (*static_cast<const Function*>(context))(index, count); },
            const_cast<Function*>(&function));
    }
};

// A barrier of `count` threads, again and again. Who waits spins first, and then sleeps, because the one that is waited
// for may need this very core.
class Barrier {
public:
    void meet(int count) {
        if (count == 1) return;
        const unsigned before = round.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
            arrived.store(0, std::memory_order_relaxed);
            {
                const std::lock_guard<std::mutex> lock(mutex);
                round.store(before + 1, std::memory_order_release);
            }
            if (sleepers.load(std::memory_order_relaxed)) all_came.notify_all();
            return;
        }
        for (int spin = 0; spin < spins; ++spin) {
            if (round.load(std::memory_order_acquire) != before) return;
            pause_briefly();
        }
        std::unique_lock<std::mutex> lock(mutex);
        sleepers.fetch_add(1, std::memory_order_relaxed);
        all_came.wait(lock, [&] { return round.load(std::memory_order_relaxed) != before; });
        sleepers.fetch_sub(1, std::memory_order_relaxed);
    }

private:
    static constexpr int spins = 5000;  // about 200 microseconds

    std::atomic<int> arrived{0}, sleepers{0};
    std::atomic<unsigned> round{0};
    std::mutex mutex;
    std::condition_variable all_came;
};

// While it lives, results and operands of its thread that are subnormal count as zero: a processor takes them, which a
// decaying state is full of, a hundred times as long.
class SubnormalsAreZero {
public:
#if defined(__SSE2__)
    SubnormalsAreZero() : before(_mm_getcsr()) { _mm_setcsr(before | 0x8040); }
    ~SubnormalsAreZero() { _mm_setcsr(before); }

private:
    unsigned before;
#elif defined(__aarch64__)
    SubnormalsAreZero() {
        asm volatile("mrs %0, fpcr" : "=r"(before));
        asm volatile("msr fpcr, %0" ::"r"(before | (1ull << 24)));
    }
    ~SubnormalsAreZero() { asm volatile("msr fpcr, %0" ::"r"(before)); }

private:
    unsigned long long before;
#endif
};
