// In place of conflicts.cpp or counts.cpp in the builds that do not record accesses.
#include "executor.h"

namespace host {

void recorder_begin(const Region*, int, uint32_t, uint32_t) {}
void recorder_end() {}
void recorder_after_fork() {}
void recorder_enter_block(uint32_t, char*, size_t, char*, size_t) {}
void recorder_start_block(uint32_t) {}
void recorder_end_block(uint32_t, uint32_t) {}
void recorder_leave_block(uint32_t) {}
void recorder_collective(Collective, uint32_t, uint32_t, unsigned, bool) {}
void recorder_spin() {}
void recorder_access(const void*, size_t, bool, Access, const void*) {}
void recorder_released(uint32_t, uint32_t, const void*, uint64_t) {}
void recorder_acquired(uint32_t, const void*, uint64_t) {}

}  // namespace host
