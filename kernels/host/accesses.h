// What the recorders of accesses share: the functions that a compiler's -fsanitize=thread calls, and where the library is.
#pragma once

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstring>

#include "executor.h"

namespace host {

struct Library {  // its code, constants and variables
    char *begin, *end;

    Library() {
        Dl_info info;
        dladdr(reinterpret_cast<void*>(recorder_begin), &info);
        begin = end = static_cast<char*>(info.dli_fbase);
        const auto* file = reinterpret_cast<const ElfW(Ehdr)*>(begin);
        const auto* headers = reinterpret_cast<const ElfW(Phdr)*>(begin + file->e_phoff);
        for (int i = 0; i < file->e_phnum; ++i)
            if (headers[i].p_type == PT_LOAD) end = std::max(end, begin + headers[i].p_vaddr + headers[i].p_memsz);
    }
    bool contains(const char* address) const { return address >= begin && address < end; }
};

// Found when the library is loaded.
inline const Library library;

}  // namespace host

// ---- The functions that -fsanitize=thread calls --------------------------------------------------------------------------

#define HOOK extern "C" __attribute__((visibility("hidden")))
#define ACCESS_HOOKS(n)                                                                                                              \
    HOOK void __tsan_read##n(void* a) { host::recorder_access(a, n, false, host::Access::plain, __builtin_return_address(0)); }         \
    HOOK void __tsan_write##n(void* a) { host::recorder_access(a, n, true, host::Access::plain, __builtin_return_address(0)); }         \
    HOOK void __tsan_unaligned_read##n(void* a) { host::recorder_access(a, n, false, host::Access::plain, __builtin_return_address(0)); } \
    HOOK void __tsan_unaligned_write##n(void* a) { host::recorder_access(a, n, true, host::Access::plain, __builtin_return_address(0)); }
ACCESS_HOOKS(1)
ACCESS_HOOKS(2)
ACCESS_HOOKS(4)
ACCESS_HOOKS(8)
ACCESS_HOOKS(16)

HOOK void __tsan_read_range(void* a, size_t n) { host::recorder_access(a, n, false, host::Access::plain, __builtin_return_address(0)); }
HOOK void __tsan_write_range(void* a, size_t n) { host::recorder_access(a, n, true, host::Access::plain, __builtin_return_address(0)); }
HOOK void* __tsan_memcpy(void* to, const void* from, size_t n) {
    host::recorder_access(from, n, false, host::Access::plain, __builtin_return_address(0));
    host::recorder_access(to, n, true, host::Access::plain, __builtin_return_address(0));
    return memcpy(to, from, n);
}
HOOK void* __tsan_memmove(void* to, const void* from, size_t n) {
    host::recorder_access(from, n, false, host::Access::plain, __builtin_return_address(0));
    host::recorder_access(to, n, true, host::Access::plain, __builtin_return_address(0));
    return memmove(to, from, n);
}
HOOK void* __tsan_memset(void* to, int byte, size_t n) {
    host::recorder_access(to, n, true, host::Access::plain, __builtin_return_address(0));
    return memset(to, byte, n);
}
HOOK void __tsan_init() {}
HOOK void __tsan_func_entry(void*) {}
HOOK void __tsan_func_exit() {}
