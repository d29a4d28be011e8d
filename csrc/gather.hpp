// Assemble a sample, or parts of it, straight from the memory-mapped tokens: every token is read once, widened
// to int64 and written once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "view.hpp"

namespace packing {

struct Span {
    std::int64_t begin, end;
};

// Tokens on disk, their documents' byte offsets in it, and what stands between documents and after the last.
template <class T>
struct Source {
    View<T> tokens;
    View<std::int64_t> offsets;
    View<std::int64_t> separator;
    std::int64_t fill;
};

template <class T>
void copy_document(const Source<T> &source, std::int64_t document, std::int64_t from, std::int64_t count,
                   std::int64_t *out) {
    const std::int64_t byte = source.offsets.at(document);
    const std::int64_t size = static_cast<std::int64_t>(sizeof(T));
    if (byte < 0 || byte % size != 0 || byte / size > source.tokens.size() ||
        count > source.tokens.size() - byte / size - from) {
        throw std::invalid_argument("offsets: document " + std::to_string(document) +
                                    " reaches outside the tokens on disk");
    }
    for (std::int64_t i = 0; i < count; ++i) {
        out[i] = source.tokens[byte / size + from + i];
    }
}

// Write the tokens `begin .. end` counted from token `offset` of unit `position`.
template <class T>
void gather_span(const Stream &stream, const Source<T> &source, std::int64_t position, std::int64_t offset, Span span,
                 std::int64_t *out) {
    offset += span.begin;
    stream.settle(position, offset);
    for (std::int64_t left = span.end - span.begin; left > 0;) {
        if (position >= stream.last()) {
            std::fill_n(out, left, source.fill);
            return;
        }
        const std::int64_t length = stream.document_length(position);
        std::int64_t count = 0;
        if (offset < length) {
            count = std::min(left, length - offset);
            copy_document(source, stream.document(position), offset, count, out);
        } else {
            count = std::min(left, stream.unit_length(position) - offset);
            for (std::int64_t i = 0; i < count; ++i) {
                out[i] = source.separator.at(offset - length + i);
            }
        }
        out += count;
        left -= count;
        offset += count;
        stream.settle(position, offset);
    }
}

// Where the units begin that have a token among the `count` tokens from (position, offset), relative to the
// first of these tokens; the first start is 0. After the last unit, the start of the filling, if there is any.
inline std::vector<std::int64_t> unit_starts(const Stream &stream, std::int64_t position, std::int64_t offset,
                                             std::int64_t count) {
    std::vector<std::int64_t> starts;
    stream.settle(position, offset);
    for (std::int64_t at = 0; at < count;) {
        starts.push_back(at);
        if (position >= stream.last()) {
            break;
        }
        at += stream.unit_length(position) - offset;
        ++position;
        offset = 0;
        stream.settle(position, offset);
    }
    return starts;
}

} // namespace packing
