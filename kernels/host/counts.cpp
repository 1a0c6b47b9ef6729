// The recorder of the "counts" build: what each warp of a launch does, as the source has it.
//
// The kernel is compiled with -fsanitize=thread, which puts a call before each access to memory (accesses.h), and with the
// numbers of counts.h, which report arithmetic. Lanes run one after another here. On a GPU a warp executes an instruction once
// for all lanes that come to it together. So the n-th time that a lane comes to a place in the code, since its warp was last
// together at a barrier or a collective of all lanes, is the same instruction as the n-th time of every other lane.
// Lanes that leave a loop at different times and enter it again count as if the later rounds of one were the earlier of another:
// then there are too few instructions. Nothing in between two collectives tells where a GPU brings them together again.
//
// Global memory is read and written in sectors of 32 bytes. The bytes of an access are those that its lanes name, each once.
// Shared memory has 32 banks of 4 bytes; an access is served in wavefronts, each of which reads one word of each bank. Lanes that
// name the same word are served together. Accesses of 8 and 16 bytes a lane are split into the halves and quarters of a warp,
// which are served one after another: a half or a quarter is at least one wavefront, each further one is a bank conflict.
#include "counts.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <new>
#include <vector>

#include "accesses.h"
#include "executor.h"

namespace host {
namespace {

constexpr uint32_t counters = static_cast<uint32_t>(Counter::count), warp_size = 32, sector_bytes = 32, banks = 32, bank_bytes = 4;
constexpr size_t most_bytes = 16;  // of a lane in one access

using Counts = uint64_t[counters];

struct Request {  // an access of a warp
    Counter kind;
    bool shared;
    uint32_t bytes;  // of a lane
    uint32_t lanes;  // which take part
    uintptr_t address[warp_size];  // in shared memory counted from its first byte
};

struct Place {  // in the code, as a warp has come to it since its lanes were last together
    uint32_t period;
    uint32_t most;                   // times of a lane
    std::vector<uint32_t> requests;  // the n-th time's, in Warp::requests
};

struct Warp {
    uint32_t period = 1;  // grows when all lanes are together
    uint32_t epoch = 0;   // of the block, when the period began
    uint32_t part[warp_size] = {};  // collectives of some lanes that a lane took part in since then
    std::vector<Place> places;      // by number
    std::vector<Request> requests;
    size_t used = 0;  // requests
};

struct Shared {
    char* begin;
    size_t bytes;
    bool contains(const char* address) const { return address >= begin && address < begin + bytes; }
};

std::vector<uint64_t> totals;  // (block, warp, counter), of the last launch
std::vector<std::vector<Warp>> memory;  // of each block in the grid, while it runs
Shared of_library, of_launch;
uint32_t warps_per_block;
bool recording;

std::vector<uint32_t> place_of_code;  // by the offset in the library; 0 if nothing has come there
std::map<std::pair<uint32_t, size_t>, uint32_t> place_of_part;
uint32_t places;  // numbers given

// The lane that runs, and how often it has come to each place in this period and part.
struct Run {
    uint32_t thread, period, part;
} run;
uint32_t run_number;
struct Times {
    uint32_t run, times;
};
std::vector<Times> times_of_place;

uint64_t* counts_of(uint32_t block, uint32_t warp) { return &totals[(size_t{block} * warps_per_block + warp) * counters]; }

void add(uint64_t* to, Counter counter, uint64_t n) { to[static_cast<uint32_t>(counter)] += n; }

Counter after(Counter kind, Counter first_kind, Counter first) {
    return static_cast<Counter>(static_cast<uint32_t>(first) + static_cast<uint32_t>(kind) - static_cast<uint32_t>(first_kind));
}

void count_global(const Request& request, uint64_t* to) {
    struct Sector {
        uintptr_t number;
        uint32_t bytes;
    } sectors[warp_size * 2];
    unsigned used = 0;
    uint64_t bytes = 0;
    for (unsigned lane = 0; lane < warp_size; ++lane) {
        if (!(request.lanes >> lane & 1)) continue;
        for (uintptr_t a = request.address[lane], end = a + request.bytes; a < end;) {
            const uintptr_t number = a / sector_bytes, stop = std::min(end, (number + 1) * sector_bytes);
            const uint32_t named = static_cast<uint32_t>((uint64_t{1} << (stop - a)) - 1) << (a % sector_bytes);
            unsigned i = used;
            while (i > 0 && sectors[i - 1].number != number) --i;
            if (i == 0) {
                sectors[used++] = {number, 0};
                i = used;
            }
            bytes += __builtin_popcount(named & ~sectors[i - 1].bytes);
            sectors[i - 1].bytes |= named;
            a = stop;
        }
    }
    add(to, after(request.kind, Counter::loads, Counter::load_bytes), bytes);
    add(to, after(request.kind, Counter::loads, Counter::load_sectors), used);
}

void count_shared(const Request& request, uint64_t* to) {
    const unsigned groups = request.bytes <= 4 ? 1 : request.bytes <= 8 ? 2 : 4, lanes = warp_size / groups;
    uint64_t wavefronts = 0, least = 0, bytes = 0;
    for (unsigned group = 0; group < groups; ++group) {
        uintptr_t words[banks][warp_size];
        unsigned in_bank[banks] = {}, most = 0;
        for (unsigned lane = group * lanes; lane < (group + 1) * lanes; ++lane) {
            if (!(request.lanes >> lane & 1)) continue;
            bytes += request.bytes;
            const uintptr_t first = request.address[lane] / bank_bytes, last = (request.address[lane] + request.bytes - 1) / bank_bytes;
            for (uintptr_t word = first; word <= last; ++word) {
                uintptr_t* const known = words[word % banks];
                unsigned& n = in_bank[word % banks];
                if (std::find(known, known + n, word) == known + n) known[n++] = word;
                most = std::max(most, n);
            }
        }
        wavefronts += most;
        least += most > 0;
    }
    const bool store = request.kind == Counter::shared_stores;
    add(to, store ? Counter::shared_store_wavefronts : Counter::shared_load_wavefronts, wavefronts);
    add(to, store ? Counter::shared_store_bytes : Counter::shared_load_bytes, bytes);
    add(to, Counter::bank_conflicts, wavefronts - least);
}

void begin_period(Warp& warp, uint64_t* to) {
    for (size_t i = 0; i < warp.used; ++i) {
        if (warp.requests[i].shared)
            count_shared(warp.requests[i], to);
        else
            count_global(warp.requests[i], to);
    }
    warp.used = 0;
    ++warp.period;
    memset(warp.part, 0, sizeof warp.part);
}

// Of a place in the code for lanes that took part in as many collectives.
uint32_t place_number(const void* pc, uint32_t part) {
    if (place_of_code.empty()) place_of_code.assign(library.end - library.begin, 0);
    const size_t offset = static_cast<const char*>(pc) - library.begin;
    uint32_t& number = part ? place_of_part[{part, offset}] : place_of_code[offset];
    if (!number) number = ++places;
    return number;
}

// The running lane's warp, at the period that it is in.
Warp& warp_of(const Position& now) {
    Warp& warp = memory[now.block][now.warp];
    if (warp.epoch != now.epoch) {
        begin_period(warp, counts_of(now.block, now.warp));
        warp.epoch = now.epoch;
    }
    return warp;
}

// The place of the warp that its running lane comes to, and how often that lane has come there, this time included.
Place& come_to(Warp& warp, const Position& now, const void* pc, uint32_t& times) {
    if (run.thread != now.thread || run.period != warp.period || run.part != warp.part[now.lane]) {
        run = {now.thread, warp.period, warp.part[now.lane]};
        ++run_number;
    }
    const uint32_t number = place_number(pc, run.part);
    if (number >= times_of_place.size()) times_of_place.resize(2 * number + 64);
    Times& here = times_of_place[number];
    if (here.run != run_number) here = {run_number, 0};
    times = ++here.times;
    if (number >= warp.places.size()) warp.places.resize(number + 1);
    Place& place = warp.places[number];
    if (place.period != warp.period) {
        place.period = warp.period;
        place.most = 0;
    }
    return place;
}

}  // namespace

void note(Counter operation) {
    if (!recording) return;
    const Position now = position();
    Warp& warp = warp_of(now);
    uint32_t times;
    Place& place = come_to(warp, now, __builtin_return_address(0), times);
    if (times <= place.most) return;
    place.most = times;
    add(counts_of(now.block, now.warp), operation, 1);
}

void recorder_access(const void* where, size_t bytes, bool is_write, Access access, const void* pc) {
    if (!recording || !bytes || in_own_stack(where)) return;
    const char* const address = static_cast<const char*>(where);
    const bool in_static = of_library.contains(address), in_dynamic = of_launch.contains(address);
    const bool shared = access != Access::cluster && (in_static || in_dynamic);
    if (!shared && library.contains(address)) return;
    for (; bytes > most_bytes; bytes -= most_bytes) {  // which is several instructions
        recorder_access(where, most_bytes, is_write, access, pc);
        where = static_cast<const char*>(where) + most_bytes;
    }
    const Position now = position();
    Warp& warp = warp_of(now);
    uint32_t times;
    Place& place = come_to(warp, now, pc, times);
    if (access == Access::atomic && !is_write) times = 1;  // what a spin reads again is no further instruction: see `spins`
    if (times > place.requests.size()) place.requests.resize(times);
    uint32_t& index = place.requests[times - 1];
    if (times > place.most) {
        place.most = times;
        index = static_cast<uint32_t>(warp.used++);
        if (warp.used > warp.requests.size()) warp.requests.resize(warp.used);
        Request& request = warp.requests[index];
        request.shared = shared;
        request.kind = access == Access::atomic      ? Counter::atomics
                       : access == Access::cluster   ? Counter::cluster_loads
                       : shared                      ? is_write ? Counter::shared_stores : Counter::shared_loads
                       : access == Access::published ? is_write ? Counter::published_stores : Counter::published_loads
                       : is_write                    ? Counter::stores
                       : access == Access::read_only ? Counter::read_only_loads
                                                     : Counter::loads;
        request.bytes = static_cast<uint32_t>(bytes);
        request.lanes = 0;
        add(counts_of(now.block, now.warp), request.kind, 1);
    }
    Request& request = warp.requests[index];
    request.lanes |= 1u << now.lane;
    request.address[now.lane] = reinterpret_cast<uintptr_t>(where) - reinterpret_cast<uintptr_t>(in_static ? of_library.begin : in_dynamic ? of_launch.begin : nullptr);
}

void recorder_begin(const Region*, int, uint32_t blocks, uint32_t threads) {
    warps_per_block = (threads + warp_size - 1) / warp_size;
    totals.assign(size_t{blocks} * warps_per_block * counters, 0);
    memory.clear();
    memory.resize(blocks);
    recording = true;
}

void recorder_end() {
    recording = false;
    memory.clear();
}

void recorder_after_fork() {
    recording = false;
    new (&totals) std::vector<uint64_t>;
    new (&memory) std::vector<std::vector<Warp>>;
    new (&place_of_code) std::vector<uint32_t>;
    new (&place_of_part) std::map<std::pair<uint32_t, size_t>, uint32_t>;
    new (&times_of_place) std::vector<Times>;
    places = 0;
}

void recorder_leave_block(uint32_t) {}

void recorder_start_block(uint32_t block) { memory[block].resize(warps_per_block); }

void recorder_end_block(uint32_t block, uint32_t barriers) {
    for (uint32_t warp = 0; warp < memory[block].size(); ++warp) {
        begin_period(memory[block][warp], counts_of(block, warp));
        add(counts_of(block, warp), Counter::barriers, barriers);
    }
    memory[block] = {};
}

void recorder_enter_block(uint32_t, char* in_library, size_t static_bytes, char* dynamic, size_t dynamic_bytes) {
    of_library = {in_library, static_bytes};
    of_launch = {dynamic, dynamic_bytes};
}

void recorder_collective(Collective kind, uint32_t block, uint32_t warp, unsigned lanes, bool of_all) {
    const bool vote = kind == Collective::ballot || kind == Collective::match;
    add(counts_of(block, warp), vote ? Counter::votes : kind == Collective::syncwarp ? Counter::syncwarps : Counter::shuffles, 1);
    Warp& here = memory[block][warp];
    if (of_all) {
        begin_period(here, counts_of(block, warp));
    } else {
        for (unsigned lane = 0; lane < warp_size; ++lane) here.part[lane] += lanes >> lane & 1;
    }
}

void recorder_spin() {
    const Position now = position();
    add(counts_of(now.block, now.warp), Counter::spins, 1);
}

void recorder_released(uint32_t, uint32_t, const void*, uint64_t) {}
void recorder_acquired(uint32_t, const void*, uint64_t) {}

}  // namespace host

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT const char* gpurnn_host_counters() {
#define HOST_NAME(name) #name ","
    return HOST_COUNTERS(HOST_NAME);
#undef HOST_NAME
}

// Of the last launch, (blocks, warps, counters).
EXPORT void gpurnn_host_counts(uint64_t* to) { std::copy(host::totals.begin(), host::totals.end(), to); }
