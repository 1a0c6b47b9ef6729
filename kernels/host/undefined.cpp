// The functions that -fsanitize=undefined calls, defined here so that they name the kernel's block and thread.
#include "executor.h"

namespace {

struct Site {  // first member of what each of these functions is given
    const char* file;
    uint32_t line, column;
};

[[noreturn]] void undefined(const Site* site, const char* what) { host::fail("undefined", "%s (%s:%u)", what, site->file, site->line); }

}  // namespace

#define HANDLER(name, what) \
    extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_##name(Site* site) { undefined(site, what); }
HANDLER(add_overflow, "signed overflow in an addition")
HANDLER(sub_overflow, "signed overflow in a subtraction")
HANDLER(mul_overflow, "signed overflow in a multiplication")
HANDLER(negate_overflow, "signed overflow in a negation")
HANDLER(divrem_overflow, "an integer division by zero")
HANDLER(builtin_unreachable, "a place that cannot be reached")
HANDLER(missing_return, "a function ends without a return")
HANDLER(load_invalid_value, "a bool or enum that holds no such value")

// What was wrong is in the values, which come as words for integers of up to 64 bits.
extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_out_of_bounds(Site* site, uintptr_t index) {
    host::fail("bounds", "index %lld is out of the array's bounds (%s:%u)", static_cast<long long>(static_cast<intptr_t>(index)), site->file, site->line);
}
extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_shift_out_of_bounds(Site* site, uintptr_t, uintptr_t by) {
    host::fail("undefined", "a shift by %lld (%s:%u)", static_cast<long long>(static_cast<intptr_t>(by)), site->file, site->line);
}
extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_type_mismatch_v1(Site* site, uintptr_t address) {
    host::fail("undefined", "%s pointer %p (%s:%u)", address ? "a misaligned" : "a null", reinterpret_cast<void*>(address), site->file, site->line);
}
