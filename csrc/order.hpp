// Deterministic orders: a shuffle and a blend that give the same result on every machine and library version.
#pragma once

#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

namespace packing {

// SplitMix64 (Steele, Lea, Flood 2014): the stream of 64-bit numbers behind the shuffle.
inline std::uint64_t splitmix64(std::uint64_t &state) {
    std::uint64_t z = (state += 0x9E3779B97F4A7C15ULL);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
}

// Fisher-Yates; a number below n is the high half of (random x n), whose bias is below n / 2^64.
inline void shuffle(std::int64_t *values, std::int64_t count, std::uint64_t key) {
    std::iota(values, values + count, std::int64_t{0});
    for (std::int64_t i = count - 1; i > 0; --i) {
        const auto product = static_cast<unsigned __int128>(splitmix64(key)) * static_cast<std::uint64_t>(i + 1);
        std::swap(values[i], values[static_cast<std::int64_t>(product >> 64)]);
    }
}

// Choose, `count` times, the source that is furthest below its share; ties go to the first.
inline void blend(const double *weights, std::vector<std::int64_t> &drawn, std::int64_t count, std::int32_t *choices) {
    std::int64_t total = std::accumulate(drawn.begin(), drawn.end(), std::int64_t{0});
    for (std::int64_t i = 0; i < count; ++i) {
        ++total;
        std::size_t best = 0;
        double largest = 0;
        for (std::size_t source = 0; source < drawn.size(); ++source) {
            const double error = weights[source] * static_cast<double>(total) - static_cast<double>(drawn[source]);
            if (source == 0 || error > largest) {
                largest = error;
                best = source;
            }
        }
        ++drawn[best];
        choices[i] = static_cast<std::int32_t>(best);
    }
}

} // namespace packing
