// Assemble a sample, or parts of it, straight from the memory-mapped tokens: one walk over the lengths of its
// documents finds their bounds, then every token asked for is read once, widened to int64 and written once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "view.hpp"

namespace packing {

struct Span {
    std::int64_t begin, end;
};

// The units that have a token in a sample. All places count from the sample's first token.
struct Units {
    std::vector<std::int64_t> positions; // in the stream
    std::vector<std::int64_t> starts;    // of the units, the first is 0; then where the last one ends
    std::vector<std::int64_t> ends;      // of the documents; what follows in a unit is separator
    std::int64_t skipped = 0;            // tokens of the first unit before the sample
};

// Walk from (position, offset) until `count` tokens or the stream's end.
inline Units walk(const Stream &stream, std::int64_t position, std::int64_t offset, std::int64_t count) {
    constexpr std::int64_t ahead = 16; // documents, about what a load takes
    Units units;
    std::int64_t at = 0;
    for (; at < count && position < stream.last(); ++position) {
        stream.prefetch(position + ahead);
        const std::int64_t length = stream.document_length(position);
        const std::int64_t unit = length + stream.separator_after(position);
        if (offset >= unit) {
            offset -= unit;
            continue;
        }
        if (units.positions.empty()) {
            units.skipped = offset;
        }
        units.positions.push_back(position);
        units.starts.push_back(at);
        units.ends.push_back(at + std::max(length - offset, std::int64_t{0}));
        at += unit - offset;
        offset = 0;
    }
    units.starts.push_back(at);
    return units;
}

// Tokens on disk, their documents' byte offsets in it, and what stands between documents and after the last.
template <class T>
struct Source {
    View<T> tokens;
    View<std::int64_t> offsets;
    View<std::int64_t> separator;
    std::int64_t fill;

    // Where the tokens `from .. from + count` of a document lie.
    std::int64_t locate(std::int64_t document, std::int64_t from, std::int64_t count) const {
        const std::int64_t byte = offsets.at(document);
        const std::int64_t size = static_cast<std::int64_t>(sizeof(T));
        if (byte < 0 || byte % size != 0 || byte / size > tokens.size() ||
            count > tokens.size() - byte / size - from) {
            throw std::invalid_argument("offsets: document " + std::to_string(document) +
                                        " reaches outside the tokens on disk");
        }
        return byte / size + from;
    }

    // Begin to load the first page of a document, which the processor does not see coming.
    void prefetch(std::int64_t document, std::int64_t count) const {
        const std::int64_t size = static_cast<std::int64_t>(sizeof(T)), start = offsets.at(document) / size;
        for (std::int64_t i = 0; i < std::min(count, 4096 / size); i += 64 / size) {
            tokens.prefetch(start + i);
        }
    }
};

// Write the tokens of one span.
template <class T>
void gather_span(const Stream &stream, const Source<T> &source, const Units &units, Span span, std::int64_t *out) {
    const auto count = static_cast<std::int64_t>(units.positions.size());
    const auto after = std::upper_bound(units.starts.begin(), units.starts.end() - 1, span.begin);
    std::int64_t at = span.begin;
    for (std::int64_t k = std::max<std::int64_t>(after - units.starts.begin() - 1, 0); k < count && at < span.end; ++k) {
        const std::int64_t start = units.starts[k], skipped = k == 0 ? units.skipped : 0;
        const std::int64_t document_end = std::min(units.ends[k], span.end);
        if (k + 1 < count && units.starts[k + 1] < span.end) {
            const std::int64_t rest = std::min(units.ends[k + 1], span.end) - units.starts[k + 1];
            source.prefetch(stream.document(units.positions[k + 1]), rest);
        }
        if (at < document_end) {
            const std::int64_t document = stream.document(units.positions[k]);
            const std::int64_t from = source.locate(document, at - start + skipped, document_end - at);
            source.tokens.copy(from, document_end - at, out);
            out += document_end - at;
            at = document_end;
        }
        const std::int64_t end = std::min(units.starts[k + 1], span.end);
        for (const std::int64_t separator = start - skipped + stream.document_length(units.positions[k]); at < end; ++at) {
            *out++ = source.separator.at(at - separator);
        }
    }
    std::fill_n(out, span.end - at, source.fill);
}

// Write the tokens of one span, and elsewhere those of the span one token further on: the labels. They are copied block
// by block, while a block is in the cache.
template <class T>
void gather_shifted(const Stream &stream, const Source<T> &source, const Units &units, Span span, std::int64_t *out,
                    std::int64_t *shifted) {
    constexpr std::int64_t block = 4096;
    for (std::int64_t at = span.begin; at < span.end; at += block) {
        const Span some{at, std::min(at + block, span.end)};
        std::int64_t *const start = out + (at - span.begin);
        gather_span(stream, source, units, some, start);
        const std::int64_t first = at == span.begin ? 1 : 0; // which is nobody's label
        std::copy(start + first, start + (some.end - at), shifted + (at - span.begin) + first - 1);
    }
    if (span.begin < span.end) {
        gather_span(stream, source, units, {span.end, span.end + 1}, shifted + (span.end - span.begin) - 1);
    }
}

// Write the positions `begin .. end` of one span, which restart at each of `bounds` (ascending, the first is 0).
inline void number_span(const View<std::int64_t> &bounds, Span span, std::int64_t *out) {
    std::int64_t low = 0, high = bounds.size(); // the last bound at or before span.begin
    while (high - low > 1) {
        const std::int64_t middle = (low + high) / 2;
        (bounds[middle] <= span.begin ? low : high) = middle;
    }
    for (std::int64_t at = span.begin; at < span.end; ++low) {
        const std::int64_t start = bounds.at(low);
        const std::int64_t end = low + 1 < bounds.size() ? std::min(bounds[low + 1], span.end) : span.end;
        for (; at < end; ++at) {
            *out++ = at - start;
        }
    }
}

} // namespace packing
