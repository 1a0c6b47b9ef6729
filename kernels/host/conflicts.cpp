// The recorder of the "conflicts" build: every access of a kernel to memory, checked for bounds and for order.
//
// The kernel is compiled with -fsanitize=thread, which puts a call before each access to memory that another thread might see;
// the functions called are in accesses.h instead of in the compiler's own runtime. Two accesses to a word by two threads, not both
// reads and not both atomic, must be ordered:
//   - in one block, by a __syncthreads between them (the block's epoch counts those), or in one warp by a __syncwarp;
//   - in two blocks, by an arrival and a wait for it (arrive and await in intrinsics.cuh, of which GridBarrier is made), or in a
//     cluster by a cluster_sync. So must be the end of a block whose shared memory another block has read.
// That is the happens-before relation of vector clocks, with a block as the unit between blocks and a lane within a warp. Whatever
// the order in which the threads happened to run, a missing barrier shows, as long as both accesses are made.
// A word keeps its last write and its last reads by two threads. An older read that these displaced is not seen.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <new>
#include <vector>

#include "accesses.h"
#include "executor.h"

namespace host {
namespace {

constexpr size_t cell_bytes = 2;  // so that neighbouring halves do not meet; single bytes are told apart by `bytes`

struct Stamp {
    uint32_t thread = none;
    uint32_t epoch;
    uint32_t lane_clock;
    uint32_t code : 27;  // address of the access in the library
    uint32_t bytes : 2;  // which of the cell's bytes
    uint32_t access : 3;

    static constexpr uint32_t none = ~0u;
};

struct Cell {
    Stamp write, read, other_read;
};

struct Span {  // memory without gaps: an array, or several that overlap
    char *begin, *end;
    const char* name;
    std::vector<Cell> cells;

    bool contains(const char* address) const { return address >= begin && address < end; }
    void start(char* first, size_t bytes, const char* called) {
        begin = first;
        end = first + bytes;
        name = called;
    }
    Cell& cell(const char* address) {
        if (cells.empty()) cells.resize((end - begin) / cell_bytes + 2);
        // Counted from an even address, so that a cell's two bytes are those of one aligned word.
        return cells[(reinterpret_cast<uintptr_t>(address) / cell_bytes) - reinterpret_cast<uintptr_t>(begin) / cell_bytes];
    }
};

struct WarpClock {
    uint32_t now[32];       // of each lane: how many __syncwarp it took part in
    uint32_t seen[32][32];  // seen[a][b]: what lane a has seen of lane b, up to but without that value
};

std::vector<Span> arrays;
struct BlockMemory {
    Span static_shared, dynamic_shared;
    std::vector<WarpClock> warps;
    std::map<uint32_t, Stamp> readers;  // by block, the last read of the shared memory by a thread of that block
};
std::vector<BlockMemory> memory;  // of each block in the grid, while it runs
// clock[b]: what comes after all that block b did in epochs below that. Only as long as it has to be, for the blocks of a
// plain launch are many and hear nothing of each other.
using Clock = std::vector<uint32_t>;
std::vector<Clock> clocks;  // of each block in the grid
std::map<std::pair<const void*, uint64_t>, Clock> arrivals;
uint32_t threads_per_block;
BlockMemory* here;
bool recording;

void join(Clock& clock, const Clock& other) {
    if (clock.size() < other.size()) clock.resize(other.size());
    for (size_t b = 0; b < other.size(); ++b) clock[b] = std::max(clock[b], other[b]);
}

// Of the block whose shared memory a block of its cluster reads; null if it has not begun.
BlockMemory* find_block(const char* address) {
    for (BlockMemory& block : memory)
        if (block.dynamic_shared.contains(address)) return &block;
    return nullptr;
}

Span* find_span(char* address) {
    if (here->static_shared.contains(address)) return &here->static_shared;
    if (here->dynamic_shared.contains(address)) return &here->dynamic_shared;
    auto after = std::upper_bound(arrays.begin(), arrays.end(), address, [](char* a, const Span& s) { return a < s.begin; });
    return after != arrays.begin() && (after - 1)->contains(address) ? &*(after - 1) : nullptr;
}

uint32_t code_of(const void* pc) { return static_cast<uint32_t>(static_cast<const char*>(pc) - library.begin - 1); }

const char* verb(bool is_write, Access access) {
    if (access == Access::cluster) return "reads (by its rank)";
    if (access == Access::atomic) return "updates atomically";
    if (access == Access::published) return is_write ? "publishes" : "reads (published)";
    return is_write ? "writes" : "reads";
}

[[noreturn]] void fail_bounds(const char* address, size_t bytes, bool is_write, const void* pc) {
    const Span* nearest = nullptr;
    size_t distance = 0;
    auto consider = [&](const Span& s) {
        if (s.begin == s.end) return;
        const size_t d = address >= s.end ? address - s.end : address < s.begin ? s.begin - address : 0;
        if (!nearest || d < distance) nearest = &s, distance = d;
    };
    for (const Span& s : arrays) consider(s);
    consider(here->static_shared);
    consider(here->dynamic_shared);
    if (in_any_stack(address)) fail("bounds", "%s a local variable of another thread, {code:0x%x}", verb(is_write, Access::plain), code_of(pc));
    if (!nearest || distance > (1u << 20))
        fail("bounds", "%s %zu bytes at %p, in no array of this launch, {code:0x%x}", verb(is_write, Access::plain), bytes, address, code_of(pc));
    fail("bounds", "%s %zu bytes, %zu bytes %s `%s` (of %zu bytes), {code:0x%x}", verb(is_write, Access::plain), bytes, distance,
         address >= nearest->end ? "behind the end of" : address < nearest->begin ? "before" : "from", nearest->name,
         size_t(nearest->end - nearest->begin), code_of(pc));
}

[[noreturn]] void fail_conflict(const Span& span, const char* address, bool is_write, Access access, const void* pc,
                                const Stamp& before, bool before_is_write, const char* why) {
    char other[96];
    describe_thread(before.thread, other, sizeof other);
    fail("conflict", "%s `%s` at byte %zu, {code:0x%x}, which %s %s, {code:0x%x}: %s", verb(is_write, access), span.name,
         size_t(address - span.begin), code_of(pc), other, verb(before_is_write, Access(before.access)), before.code, why);
}

bool is_ordered(const Stamp& before, const Position& now) {
    if (before.thread == Stamp::none || before.thread == now.thread) return true;
    const uint32_t block = before.thread / threads_per_block, thread = before.thread % threads_per_block;
    const Clock& clock = clocks[now.block];
    if (block != now.block) return block < clock.size() && clock[block] > before.epoch;
    if (before.epoch < now.epoch) return true;
    return thread / 32 == now.warp && here->warps[now.warp].seen[now.lane][thread % 32] > before.lane_clock;
}

bool of_another_block(const Stamp& before, const Position& now) {
    return before.thread != Stamp::none && before.thread / threads_per_block != now.block;
}

Stamp stamp_of(unsigned bytes, Access access, const void* pc, const Position& now) {
    Stamp stamp;
    stamp.thread = now.thread;
    stamp.epoch = now.epoch;
    stamp.lane_clock = here->warps[now.warp].now[now.lane];
    stamp.code = code_of(pc);
    stamp.bytes = bytes;
    stamp.access = static_cast<uint32_t>(access);
    return stamp;
}

void check_cell(Span& span, char* address, unsigned bytes, bool is_write, Access access, const void* pc, const Position& now) {
    Cell& cell = span.cell(address);
    auto check = [&](const Stamp& before, bool before_is_write) {
        if (!(before.bytes & bytes) || before.thread == Stamp::none) return;
        if (!(access == Access::atomic && Access(before.access) == Access::atomic) && !is_ordered(before, now))
            fail_conflict(span, address, is_write, access, pc, before, before_is_write, "with no barrier in between");
        if (!is_write && access == Access::read_only)
            fail_conflict(span, address, is_write, access, pc, before, before_is_write, "__ldg is for what no thread of the launch writes");
        // Ordered, but on a GPU the reader's L1 cache may still hold what was there before.
        if (!is_write && access != Access::cluster && of_another_block(before, now) && (access == Access::plain || Access(before.access) == Access::plain))
            fail_conflict(span, address, is_write, access, pc, before, before_is_write,
                          "what one block writes and another reads goes through publish() and read_published()");
    };
    check(cell.write, true);
    const Stamp stamp = stamp_of(bytes, access, pc, now);
    if (is_write) {
        check(cell.read, false);
        check(cell.other_read, false);
        cell.write = stamp;
    } else {
        if (cell.read.thread != now.thread) cell.other_read = cell.read;
        cell.read = stamp;
    }
}

}  // namespace

void recorder_access(const void* where, size_t bytes, bool is_write, Access access, const void* pc) {
    if (!recording || !bytes || in_own_stack(where)) return;
    char* address = static_cast<char*>(const_cast<void*>(where));
    char* const end = address + bytes;
    BlockMemory* const block = access == Access::cluster ? find_block(address) : nullptr;
    if (access == Access::cluster && !block)
        fail("conflict", "%s shared memory of a block that has not begun, {code:0x%x}", verb(is_write, access), code_of(pc));
    Span* span = block ? &block->dynamic_shared : find_span(address);
    if (!span && library.contains(address)) return;
    if (!span || end > span->end) fail_bounds(span ? span->end : address, bytes, is_write, pc);
    const Position now = position();
    if (block && block != here) block->readers[now.block] = stamp_of(3, access, pc, now);
    while (address < end) {
        const bool odd = reinterpret_cast<uintptr_t>(address) % cell_bytes;
        const bool both = !odd && end - address > 1;
        check_cell(*span, address, odd ? 2 : both ? 3 : 1, is_write, access, pc, now);
        address += both ? 2 : 1;
    }
}

void recorder_begin(const Region* regions, int count, uint32_t blocks, uint32_t threads) {
    std::vector<Region> sorted(regions, regions + count);
    std::sort(sorted.begin(), sorted.end(), [](const Region& a, const Region& b) { return a.begin < b.begin; });
    for (const Region& region : sorted) {
        if (!region.bytes) continue;
        if (arrays.empty() || region.begin >= arrays.back().end) {
            arrays.emplace_back();
            arrays.back().start(region.begin, region.bytes, region.name);
        } else {
            arrays.back().end = std::max(arrays.back().end, region.begin + region.bytes);
        }
    }
    threads_per_block = threads;
    memory.resize(blocks);
    clocks.resize(blocks);
    recording = true;
}

void recorder_end() {
    recording = false;
    arrays.clear();
    memory.clear();
    clocks.clear();
    arrivals.clear();
}

void recorder_after_fork() {
    recording = false;
    here = nullptr;
    new (&arrays) std::vector<Span>;
    new (&memory) std::vector<BlockMemory>;
    new (&clocks) std::vector<Clock>;
    new (&arrivals) std::map<std::pair<const void*, uint64_t>, Clock>;
}

void recorder_start_block(uint32_t block) { memory[block].warps.assign((threads_per_block + 31) / 32, WarpClock()); }

void recorder_leave_block(uint32_t block) {
    const Position now = position();
    for (const auto& [other, read] : memory[block].readers) {
        if (is_ordered(read, now)) continue;
        char reader[96];
        describe_thread(read.thread, reader, sizeof reader);
        fail("conflict", "ends, and its shared memory with it, which %s reads, {code:0x%x}: with no barrier in between", reader, read.code);
    }
}

void recorder_end_block(uint32_t block, uint32_t) { memory[block] = BlockMemory(); }

void recorder_enter_block(uint32_t block, char* static_shared, size_t static_bytes, char* dynamic, size_t dynamic_bytes) {
    here = &memory[block];
    here->static_shared.start(static_shared, static_bytes, "static shared memory");
    here->dynamic_shared.start(dynamic, dynamic_bytes, "dynamic shared memory");
}

void recorder_collective(Collective kind, uint32_t block, uint32_t warp, unsigned lanes, bool) {
    if (kind != Collective::syncwarp) return;  // the others order no memory
    WarpClock& clock = memory[block].warps[warp];
    uint32_t joined[32] = {};
    for (unsigned a = 0; a < 32; ++a) {
        if (!(lanes >> a & 1)) continue;
        for (unsigned b = 0; b < 32; ++b) joined[b] = std::max(joined[b], clock.seen[a][b]);
        joined[a] = std::max(joined[a], clock.now[a] + 1);
    }
    for (unsigned a = 0; a < 32; ++a) {
        if (!(lanes >> a & 1)) continue;
        memcpy(clock.seen[a], joined, sizeof joined);
        ++clock.now[a];
    }
}

void recorder_spin() {}

void recorder_released(uint32_t block, uint32_t epoch, const void* word, uint64_t goal) {
    Clock& clock = arrivals[{word, goal}];
    join(clock, clocks[block]);
    if (clock.size() <= block) clock.resize(block + 1);
    clock[block] = std::max(clock[block], epoch);
}

void recorder_acquired(uint32_t block, const void* word, uint64_t goal) {
    const auto found = arrivals.find({word, goal});
    if (found != arrivals.end()) join(clocks[block], found->second);
}

}  // namespace host
