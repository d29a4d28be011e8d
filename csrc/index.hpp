// Which documents go into which sample: the builders of the two packings. Their specification is
// megatron_ultralong/data/packing/specification.py, which they must equal.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "parallel.hpp"
#include "view.hpp"

namespace packing {

constexpr std::int64_t unlimited = INT64_MAX;

inline void require_positive(std::int64_t value, const char *name) {
    if (value <= 0) {
        throw std::invalid_argument(std::string(name) + ": must be positive, got " + std::to_string(value));
    }
}

template <class T>
py::array_t<T> to_array(const std::vector<T> &values, const std::vector<py::ssize_t> &shape) {
    py::array_t<T> array(shape);
    std::copy(values.begin(), values.end(), array.mutable_data());
    return array;
}

// The documents' lengths in the stream's order. Looking them up jumps about in memory and is most of the work of
// building an index, so all cores do it, and ask for what they will need a little later.
inline Scratch<std::int32_t> ordered_lengths(const Stream &stream) {
    constexpr std::int64_t block = 1 << 16, ahead = 32;
    auto lengths = scratch<std::int32_t>(stream.last());
    parallel((stream.last() + block - 1) / block, [&](std::int64_t task) {
        for (std::int64_t i = task * block, end = std::min(i + block, stream.last()); i < end; ++i) {
            stream.prefetch(i + ahead);
            lengths[i] = static_cast<std::int32_t>(stream.document_length(i));
        }
    });
    return lengths;
}

// One pass over the documents. Returns rows (position, offset), one a sample and one for the border after the
// last, and the number of tokens in the whole stream. With `keep_last` a partial sample after the last border
// gets a row of its own: the stream's end.
inline std::pair<std::vector<std::int64_t>, std::int64_t> cut_stream(const Stream &stream,
                                                                     std::int64_t sequence_length, bool keep_last) {
    const auto lengths = ordered_lengths(stream);
    std::vector<std::int64_t> rows;
    std::int64_t start = 0;  // of the unit at hand, in tokens of the stream
    std::int64_t border = 0; // the next border between samples
    for (std::int64_t position = 0; position < stream.last(); ++position) {
        const std::int64_t end = start + lengths[position] + stream.separator_after(position);
        for (; border < end; border += sequence_length) {
            rows.push_back(position);
            rows.push_back(border - start);
        }
        start = end;
    }
    // The last border is a token that only the sample before it needs, as a label, unless others follow.
    if (keep_last && !rows.empty() && start > border - sequence_length + 1) {
        rows.push_back(stream.last());
        rows.push_back(0);
    }
    return {std::move(rows), start};
}

// Bins by the number of tokens that are free in them: a heap of bins for each number, and above the heaps a tree
// of bitmaps that says which are not empty, so that the fullest bin with room is found in a step a level.
class Rooms {
  public:
    explicit Rooms(std::int64_t capacity) : heaps_(static_cast<std::size_t>(capacity) + 1) {
        for (std::int64_t size = capacity + 1; levels_.empty() || size > 1; size = (size + 63) / 64) {
            levels_.emplace_back((size + 63) / 64, 0);
        }
    }

    void insert(std::int64_t free, std::int64_t bin) {
        auto &heap = heaps_[free];
        heap.push_back(bin);
        std::push_heap(heap.begin(), heap.end(), std::greater<>());
        for (auto &level : levels_) {
            level[free / 64] |= std::uint64_t{1} << (free % 64);
            free /= 64;
        }
    }

    // The smallest number of free tokens, at least `wanted`, that some bin has; -1 if none has.
    std::int64_t find(std::int64_t wanted) const {
        for (std::size_t height = 0; height < levels_.size(); ++height, wanted = wanted / 64 + 1) {
            const auto &level = levels_[height];
            if (wanted / 64 >= static_cast<std::int64_t>(level.size())) {
                return -1;
            }
            const std::uint64_t word = level[wanted / 64] & (~std::uint64_t{0} << (wanted % 64));
            if (word != 0) {
                std::int64_t found = wanted / 64 * 64 + __builtin_ctzll(word);
                while (height-- > 0) {
                    found = found * 64 + __builtin_ctzll(levels_[height][found]);
                }
                return found;
            }
        }
        return -1;
    }

    // Remove the first-opened bin of those with `free` tokens.
    std::int64_t take(std::int64_t free) {
        auto &heap = heaps_[free];
        std::pop_heap(heap.begin(), heap.end(), std::greater<>());
        const std::int64_t bin = heap.back();
        heap.pop_back();
        if (heap.empty()) {
            for (auto &level : levels_) {
                level[free / 64] &= ~(std::uint64_t{1} << (free % 64));
                if (level[free / 64] != 0) {
                    break;
                }
                free /= 64;
            }
        }
        return bin;
    }

  private:
    std::vector<std::vector<std::int64_t>> heaps_;
    std::vector<std::vector<std::uint64_t>> levels_;
};

struct Bins {
    std::vector<std::int64_t> order;   // positions in document_ids, bin after bin
    std::vector<std::int64_t> offsets; // of the bins in order
};

// Put `count` things in order of their keys below `keys`, equal ones as they come: (order, where each key begins).
template <class Key>
Bins counting_sort(std::int64_t count, std::int64_t keys, Key key) {
    Bins result;
    result.offsets.assign(static_cast<std::size_t>(keys) + 1, 0);
    for (std::int64_t i = 0; i < count; ++i) {
        if (key(i) >= 0) {
            ++result.offsets[key(i) + 1];
        }
    }
    for (std::int64_t k = 0; k < keys; ++k) {
        result.offsets[k + 1] += result.offsets[k];
    }
    result.order.resize(result.offsets.back());
    std::vector<std::int64_t> next(result.offsets.begin(), result.offsets.end() - 1);
    for (std::int64_t i = 0; i < count; ++i) {
        if (key(i) >= 0) {
            result.order[next[key(i)]++] = i;
        }
    }
    return result;
}

// Longest first, into the fullest bin that still has room: one pass over the documents in order of length, each
// in a few steps, whatever the number of bins.
inline Bins best_fit(const Stream &stream, std::int64_t capacity) {
    const std::int64_t count = stream.last();
    const auto lengths = ordered_lengths(stream);
    std::vector<std::int64_t> bin_of(count, -1);
    std::int64_t total = 0;
    for (std::int64_t position = 0; position < count; ++position) {
        total += lengths[position] <= capacity ? lengths[position] : 0;
    }
    capacity = std::min(capacity, total); // one bin that holds everything needs no more, and Rooms stay small
    const auto by_length = counting_sort(count, capacity + 1, [&](std::int64_t position) {
        return lengths[position] <= capacity ? capacity - lengths[position] : -1;
    });
    Rooms rooms(capacity);
    std::int64_t bins = 0;
    for (const std::int64_t position : by_length.order) {
        std::int64_t free = rooms.find(lengths[position]);
        const std::int64_t bin = free < 0 ? bins++ : rooms.take(free);
        free = free < 0 ? capacity : free;
        bin_of[position] = bin;
        rooms.insert(free - lengths[position], bin);
    }
    return counting_sort(count, bins, [&](std::int64_t position) { return bin_of[position]; });
}

} // namespace packing
