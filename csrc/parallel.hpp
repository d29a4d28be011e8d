// Work on all cores whose result does not depend on their number, and memory for it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace packing {

struct Free {
    void operator()(void *memory) const { std::free(memory); }
};

template <class T>
using Scratch = std::unique_ptr<T[], Free>;

// Uninitialised memory, in huge pages where the system has them: filling 80 MB then takes 40 page faults, not 20,000.
template <class T>
Scratch<T> scratch(std::int64_t count) {
    constexpr std::size_t page = std::size_t{1} << 21;
    const std::size_t bytes = (static_cast<std::size_t>(count) * sizeof(T) / page + 1) * page;
    void *memory = std::aligned_alloc(page, bytes);
    if (memory == nullptr) {
        throw std::bad_alloc();
    }
#ifdef __linux__
    madvise(memory, bytes, MADV_HUGEPAGE); // advice: it may be refused
#endif
    return Scratch<T>(static_cast<T *>(memory));
}

// Threads that work together unless told otherwise, the calling one included.
inline std::int64_t default_workers() {
    return std::clamp<std::int64_t>(std::thread::hardware_concurrency(), 1, 16);
}

// Call task(0) .. task(count - 1), each once, in any order and at the same time; rethrows one of their exceptions.
// Threads that the system does not start are done without: those that are there, at least the calling one, do all.
template <class Task>
void parallel(std::int64_t count, Task task, std::int64_t workers = default_workers()) {
    std::atomic<std::int64_t> next{0};
    std::exception_ptr failure;
    std::mutex mutex;
    const auto work = [&] {
        try {
            for (std::int64_t i = next++; i < count; i = next++) {
                task(i);
            }
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex);
            failure = std::current_exception();
            next = count;
        }
    };
    std::vector<std::thread> threads;
    try {
        for (std::int64_t i = 1; i < std::min(count, workers); ++i) {
            threads.emplace_back(work);
        }
    } catch (const std::exception &) { // system_error or bad_alloc, which would pass running threads by: std::terminate
    }
    work();
    for (auto &thread : threads) {
        thread.join();
    }
    if (failure) {
        std::rethrow_exception(failure);
    }
}

} // namespace packing
