// A fiber: a stack and the place where its code stopped. switch_fiber() leaves one and continues another.
//
// x86-64 has its own twenty instructions, because swapcontext() makes a system call at every switch; other machines use
// swapcontext(). AddressSanitizer has to be told of each change of stack.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#define HOST_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HOST_ASAN 1
#endif
#endif
#ifndef HOST_ASAN
#define HOST_ASAN 0
#endif

#if HOST_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) || defined(HOST_UCONTEXT)
#include <ucontext.h>
#define HOST_ASSEMBLY 0
#else
#define HOST_ASSEMBLY 1
#endif

namespace host {

struct Fiber {
    char* stack = nullptr;  // lowest address; null for the scheduler, which runs on the caller's own stack
    size_t stack_bytes = 0;
#if HOST_ASSEMBLY
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
};

#if HOST_ASSEMBLY
// Saves what a called function must preserve, stores the stack pointer through the first argument, takes the second.
extern "C" __attribute__((visibility("hidden"))) void gpurnn_host_switch(void** from, void* to);
#endif

inline void unpoison(char* memory, size_t bytes) {
#if HOST_ASAN
    ASAN_UNPOISON_MEMORY_REGION(memory, bytes);
#else
    (void)memory, (void)bytes;
#endif
}

// Prepares `fiber` to run entry(), which never returns, from the top of its stack.
inline void start_fiber(Fiber& fiber, void (*entry)()) {
    unpoison(fiber.stack, fiber.stack_bytes);  // an abandoned fiber leaves its frames poisoned
#if HOST_ASSEMBLY
    auto top = reinterpret_cast<uintptr_t>(fiber.stack + fiber.stack_bytes) & ~uintptr_t{15};
    void** frame = reinterpret_cast<void**>(top) - 8;  // six registers, the return address, and one for alignment
    std::memset(frame, 0, 8 * sizeof(void*));
    frame[6] = reinterpret_cast<void*>(entry);
    fiber.stack_pointer = frame;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = fiber.stack_bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, entry, 0);
#endif
}

#if HOST_ASAN
// The stack that the scheduler runs on, as AddressSanitizer told the first fiber that came from there.
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_stack_bytes = 0;
#endif

// To be called first thing in a fiber, and after each return from switch_fiber().
inline void arrived_on_fiber(bool from_scheduler) {
#if HOST_ASAN
    const void* stack;
    size_t bytes;
    __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
    if (from_scheduler) {
        scheduler_stack = stack;
        scheduler_stack_bytes = bytes;
    }
#else
    (void)from_scheduler;
#endif
}

inline void switch_fiber(Fiber& from, Fiber& to) {
#if HOST_ASAN
    void* fake_stack;
    __sanitizer_start_switch_fiber(&fake_stack, to.stack ? to.stack : scheduler_stack,
                                   to.stack ? to.stack_bytes : scheduler_stack_bytes);
#endif
#if HOST_ASSEMBLY
    gpurnn_host_switch(&from.stack_pointer, to.stack_pointer);
#else
    swapcontext(&from.context, &to.context);
#endif
    arrived_on_fiber(from.stack != nullptr);
}

}  // namespace host
