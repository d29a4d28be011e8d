// Which documents go into which sample: the builders of the two packings. Their specification is
// megatron_ultralong/data/packing.py, which they must equal.
#pragma once

#include <algorithm>
#include <cstdint>
#include <set>
#include <utility>
#include <vector>

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

// One pass over the documents. Returns rows (position, offset), one a sample and one for the border after the
// last, and the number of tokens in the whole stream.
inline std::pair<std::vector<std::int64_t>, std::int64_t> cut_stream(const Stream &stream,
                                                                     std::int64_t sequence_length) {
    std::vector<std::int64_t> rows;
    std::int64_t start = 0;  // of the unit at hand, in tokens of the stream
    std::int64_t border = 0; // the next border between samples
    for (std::int64_t position = 0; position < stream.last(); ++position) {
        const std::int64_t end = start + stream.unit_length(position);
        for (; border < end; border += sequence_length) {
            rows.push_back(position);
            rows.push_back(border - start);
        }
        start = end;
    }
    return {std::move(rows), start};
}

struct Bins {
    std::vector<std::int64_t> order;   // positions in document_ids, bin after bin
    std::vector<std::int64_t> offsets; // of the bins in order
};

// Longest first, into the fullest bin that still has room: O(n log n).
inline Bins best_fit(const Stream &stream, std::int64_t capacity) {
    const std::int64_t count = stream.last();
    std::vector<std::int64_t> lengths(count), by_length, bin_of(count, -1);
    for (std::int64_t position = 0; position < count; ++position) {
        lengths[position] = stream.document_length(position);
        if (lengths[position] <= capacity) {
            by_length.push_back(position);
        }
    }
    std::stable_sort(by_length.begin(), by_length.end(),
                     [&](std::int64_t a, std::int64_t b) { return lengths[a] > lengths[b]; });
    std::set<std::pair<std::int64_t, std::int64_t>> room; // (tokens free, bin)
    std::int64_t bins = 0;
    for (const std::int64_t position : by_length) {
        const auto found = room.lower_bound({lengths[position], -1});
        std::pair<std::int64_t, std::int64_t> bin = {capacity, bins};
        if (found == room.end()) {
            ++bins;
        } else {
            bin = *found;
            room.erase(found);
        }
        bin_of[position] = bin.second;
        room.insert({bin.first - lengths[position], bin.second});
    }
    Bins result;
    result.offsets.assign(bins + 1, 0);
    for (const std::int64_t position : by_length) {
        ++result.offsets[bin_of[position] + 1];
    }
    for (std::int64_t bin = 0; bin < bins; ++bin) {
        result.offsets[bin + 1] += result.offsets[bin];
    }
    result.order.resize(by_length.size());
    std::vector<std::int64_t> next(result.offsets.begin(), result.offsets.end());
    for (std::int64_t position = 0; position < count; ++position) {
        if (bin_of[position] >= 0) {
            result.order[next[bin_of[position]]++] = position;
        }
    }
    return result;
}

} // namespace packing
