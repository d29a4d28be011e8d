// Python bindings of the packing kernels: check the arguments, release the GIL, return new arrays.
//
// A mapped file that is truncated while it is read ends the process with SIGBUS; nothing here can turn that
// into an exception.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "gather.hpp"
#include "index.hpp"
#include "order.hpp"

namespace packing {
namespace {

using Ints = py::array_t<std::int64_t>;

py::tuple build_sample_index(const py::array &lengths, const py::array &document_ids, std::int64_t separator_length,
                             std::int64_t sequence_length, bool keep_last) {
    require_positive(sequence_length, "sequence_length");
    const Stream stream(document_ids, lengths, separator_length, document_ids.size(), unlimited);
    std::pair<std::vector<std::int64_t>, std::int64_t> result;
    {
        py::gil_scoped_release release;
        result = cut_stream(stream, sequence_length, keep_last);
    }
    const auto rows = static_cast<py::ssize_t>(result.first.size() / 2);
    return py::make_tuple(to_array(result.first, {rows, 2}), result.second);
}

py::tuple build_best_fit(const py::array &lengths, const py::array &document_ids, std::int64_t capacity,
                         std::int64_t longest) {
    require_positive(capacity, "capacity");
    const Stream stream(document_ids, lengths, 0, document_ids.size(), longest);
    Bins bins;
    {
        py::gil_scoped_release release;
        bins = best_fit(stream, capacity);
    }
    return py::make_tuple(to_array(bins.order, {static_cast<py::ssize_t>(bins.order.size())}),
                          to_array(bins.offsets, {static_cast<py::ssize_t>(bins.offsets.size())}));
}

void require_start(const Stream &stream, std::int64_t position, std::int64_t offset) {
    if (position < 0 || position > stream.last() || offset < 0 || offset > (std::int64_t{1} << 60)) {
        throw std::invalid_argument("start: (" + std::to_string(position) + ", " + std::to_string(offset) +
                                    ") is not in the stream");
    }
}

using Spans = std::vector<std::pair<std::int64_t, std::int64_t>>;

// Whether the second half of the spans is the first half one token further on: the tokens and labels of a slice.
bool is_shifted(const std::vector<Span> &spans) {
    const std::size_t half = spans.size() / 2;
    return spans.size() % 2 == 0 && std::equal(spans.begin(), spans.begin() + half, spans.begin() + half,
                                               [](const Span &one, const Span &other) {
                                                   return other.begin == one.begin + 1 && other.end == one.end + 1;
                                               });
}

// Tokens from which two spans are read on two cores: below, starting a thread takes longer.
constexpr std::int64_t worth_threads = std::int64_t{1} << 17;

// The spans, checked, and how many tokens they have together.
std::pair<std::vector<Span>, std::int64_t> checked(const Spans &spans) {
    std::vector<Span> result;
    std::int64_t total = 0;
    for (const auto &[begin, end] : spans) {
        if (begin < 0 || end < begin || end > (std::int64_t{1} << 40)) {
            throw std::invalid_argument("spans: " + std::to_string(begin) + ".." + std::to_string(end) +
                                        " is not a range of a sample");
        }
        result.push_back({begin, end});
        total += end - begin;
    }
    return {std::move(result), total};
}

template <class T>
py::tuple gather_typed(const Stream &stream, const Source<T> &source, std::int64_t position, std::int64_t offset,
                       std::int64_t count, const Spans &spans) {
    const auto [ranges, total] = checked(spans);
    for (const Span &span : ranges) {
        count = std::max(count, span.end);
    }
    Ints result(total);
    std::int64_t *out = result.mutable_data();
    Units units;
    {
        py::gil_scoped_release release;
        units = walk(stream, position, offset, count);
        std::vector<std::int64_t> places;
        std::int64_t place = 0;
        for (const Span &span : ranges) {
            places.push_back(place);
            place += span.end - span.begin;
        }
        const bool shifted = is_shifted(ranges);
        const auto task = [&](std::int64_t i) {
            if (shifted) {
                gather_shifted(stream, source, units, ranges[i], out + places[i], out + places[i] + total / 2);
            } else {
                gather_span(stream, source, units, ranges[i], out + places[i]);
            }
        };
        const auto tasks = static_cast<std::int64_t>(shifted ? ranges.size() / 2 : ranges.size());
        if (total >= worth_threads) {
            parallel(tasks, task);
        } else {
            for (std::int64_t i = 0; i < tasks; ++i) {
                task(i);
            }
        }
    }
    return py::make_tuple(result, to_array(units.starts, {static_cast<py::ssize_t>(units.starts.size())}),
                          to_array(units.ends, {static_cast<py::ssize_t>(units.ends.size())}));
}

py::tuple gather(const py::array &tokens, const py::array &offsets, const py::array &lengths,
                 const py::array &document_ids, const py::array &separator, std::int64_t fill, std::int64_t position,
                 std::int64_t offset, std::int64_t last, std::int64_t longest, std::int64_t count, const Spans &spans) {
    const Stream stream(document_ids, lengths, separator.size(), last, longest);
    require_start(stream, position, offset);
    const auto run = [&](auto type) {
        using T = decltype(type);
        const Source<T> source{View<T>(tokens, "tokens"), View<std::int64_t>(offsets, "offsets"),
                               View<std::int64_t>(separator, "separator"), fill};
        return gather_typed<T>(stream, source, position, offset, count, spans);
    };
    const std::string type = py::cast<std::string>(py::str(tokens.dtype()));
    if (type == "uint16") {
        return run(std::uint16_t{});
    }
    if (type == "int32") {
        return run(std::int32_t{});
    }
    if (type == "uint8") {
        return run(std::uint8_t{});
    }
    if (type == "int64") {
        return run(std::int64_t{});
    }
    throw std::invalid_argument("tokens: " + type + " is not one of uint8, uint16, int32, int64");
}

Ints positions(const py::array &bounds, const Spans &spans) {
    const View<std::int64_t> view(bounds, "bounds");
    const auto [ranges, total] = checked(spans);
    if (view.size() == 0 || view[0] != 0) {
        throw std::invalid_argument("bounds: must begin with 0");
    }
    for (std::int64_t i = 1; i < view.size(); ++i) {
        if (view[i] < view[i - 1]) {
            throw std::invalid_argument("bounds: must ascend");
        }
    }
    Ints result(total);
    std::int64_t *out = result.mutable_data();
    py::gil_scoped_release release;
    for (const Span &span : ranges) {
        number_span(view, span, out);
        out += span.end - span.begin;
    }
    return result;
}

Ints permutation(std::int64_t count, std::uint64_t key) {
    if (count < 0) {
        throw std::invalid_argument("count: must not be negative, got " + std::to_string(count));
    }
    Ints result(count);
    std::int64_t *values = result.mutable_data();
    py::gil_scoped_release release;
    shuffle(values, count, key);
    return result;
}

py::tuple blend_sources(const std::vector<double> &weights, std::vector<std::int64_t> drawn, std::int64_t count) {
    if (weights.empty() || weights.size() != drawn.size() || count < 0) {
        throw std::invalid_argument("blend: weights and drawn must have one entry a source, count must not be negative");
    }
    py::array_t<std::int32_t> choices(count);
    std::int32_t *out = choices.mutable_data();
    {
        py::gil_scoped_release release;
        blend(weights.data(), drawn, count, out);
    }
    return py::make_tuple(choices, drawn);
}

} // namespace
} // namespace packing

PYBIND11_MODULE(_packing, m) {
    namespace py = pybind11;
    using namespace pybind11::literals;
    m.doc() = "Packing kernels in C++. Specification: the functions of the same names in data/packing/specification.py.";
    m.attr("INTERFACE") = 2; // as megatron_ultralong/data/__init__.py expects
    m.def("build_sample_index", &packing::build_sample_index, "lengths"_a, "document_ids"_a, "separator_length"_a,
          "sequence_length"_a, "keep_last"_a,
          "Borders between samples of the concatenated documents.\n\n"
          "Returns (int64 [rows, 2] of (position, offset), tokens in all).");
    m.def("best_fit", &packing::build_best_fit, "lengths"_a, "document_ids"_a, "capacity"_a, "longest"_a,
          "Whole documents into bins of `capacity` tokens; longer ones are left out.\n\n"
          "Returns (int64 [kept] positions in document_ids, int64 [bins + 1] offsets into it).");
    m.def("gather", &packing::gather, "tokens"_a, "offsets"_a, "lengths"_a, "document_ids"_a, "separator"_a, "fill"_a,
          "position"_a, "offset"_a, "last"_a, "longest"_a, "count"_a, "spans"_a,
          "Parts of a sample that begins at (position, offset), and its documents' bounds.\n\n"
          "Returns (int64 [n] the spans' tokens, int64 [M + 1] starts of the units and the last one's end, int64 [M] "
          "ends of the documents in them).");
    m.def("positions", &packing::positions, "bounds"_a, "spans"_a,
          "Positions of the spans' tokens, which restart at each bound: int64 [n].");
    m.def("permutation", &packing::permutation, "count"_a, "key"_a, "0 .. count - 1 shuffled by `key`: int64 [count].");
    m.def("blend", &packing::blend_sources, "weights"_a, "drawn"_a, "count"_a,
          "The next `count` sources (int32 [count]) and how often each was drawn afterwards.");
}
