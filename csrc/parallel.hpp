// Work on all cores whose result does not depend on their number.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace packing {

// Call task(0) .. task(count - 1), each once, in any order and at the same time; rethrows one of their exceptions.
template <class Task>
void parallel(std::int64_t count, Task task) {
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
    const auto cores = static_cast<std::int64_t>(std::thread::hardware_concurrency());
    std::vector<std::thread> threads;
    for (std::int64_t i = 1; i < std::min({count, cores, std::int64_t{16}}); ++i) {
        threads.emplace_back(work);
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
