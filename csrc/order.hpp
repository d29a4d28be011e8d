// Deterministic orders: a shuffle and a blend that give the same result on every machine and library version.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "parallel.hpp"

namespace packing {

constexpr std::uint64_t splitmix64_step = 0x9E3779B97F4A7C15ULL;

// SplitMix64 (Steele, Lea, Flood 2014): the stream of 64-bit numbers behind the shuffle. The state before number i
// is key + i x step, so that the stream may be entered anywhere.
inline std::uint64_t splitmix64(std::uint64_t &state) {
    std::uint64_t z = (state += splitmix64_step);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
}

// A number below n: the high half of (random x n), whose bias is below n / 2^64.
inline std::int64_t below(std::uint64_t n, std::uint64_t &state) {
    return static_cast<std::int64_t>((static_cast<unsigned __int128>(splitmix64(state)) * n) >> 64);
}

// Numbers that are shuffled in one piece: 512 KiB, which the second-level cache holds.
constexpr std::int64_t shuffle_block = 1 << 16;

inline void fisher_yates(std::int64_t *values, std::int64_t count, std::uint64_t state) {
    for (std::int64_t i = count - 1; i > 0; --i) {
        std::swap(values[i], values[below(static_cast<std::uint64_t>(i + 1), state)]);
    }
}

// Throw each number into one of several blocks at random, then shuffle each block where it lies, from a seed of its
// own (Rao 1961, Sandelius 1962): as uniform as Fisher-Yates over all, in memory that the cache holds, on all cores.
inline void shuffle(std::int64_t *values, std::int64_t count, std::uint64_t key) {
    const std::int64_t blocks = (count + shuffle_block - 1) / shuffle_block;
    if (blocks <= 1) {
        std::iota(values, values + count, std::int64_t{0});
        fisher_yates(values, count, key);
        return;
    }
    // Each part of the numbers counts what it throws where, and then knows where its throws begin in each block.
    const std::int64_t parts = 64, size = (count + parts - 1) / parts;
    const auto throw_part = [&](std::int64_t part, auto into) {
        std::uint64_t state = key + static_cast<std::uint64_t>(part * size) * splitmix64_step;
        for (std::int64_t i = part * size, end = std::min(i + size, count); i < end; ++i) {
            into(below(static_cast<std::uint64_t>(blocks), state), i);
        }
    };
    std::vector<std::int64_t> next(parts * blocks, 0), starts(blocks + 1, 0);
    parallel(parts, [&](std::int64_t part) {
        std::vector<std::int64_t> here(blocks, 0);
        throw_part(part, [&](std::int64_t block, std::int64_t) { ++here[block]; });
        std::copy(here.begin(), here.end(), next.begin() + part * blocks);
    });
    std::int64_t start = 0;
    for (std::int64_t block = 0; block < blocks; ++block) {
        for (std::int64_t part = 0; part < parts; ++part) {
            start += std::exchange(next[part * blocks + block], start);
        }
        starts[block + 1] = start;
    }
    parallel(parts, [&](std::int64_t part) {
        std::int64_t *here = next.data() + part * blocks;
        throw_part(part, [&](std::int64_t block, std::int64_t i) { values[here[block]++] = i; });
    });
    std::uint64_t state = key + static_cast<std::uint64_t>(count) * splitmix64_step;
    std::vector<std::uint64_t> seeds(blocks);
    std::generate(seeds.begin(), seeds.end(), [&] { return splitmix64(state); });
    parallel(blocks, [&](std::int64_t block) {
        fisher_yates(values + starts[block], starts[block + 1] - starts[block], seeds[block]);
    });
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
