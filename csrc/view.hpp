// Checked, read-only views of one-dimensional numpy arrays.
//
// Invariant: every index that comes from a file is checked before it is used; a bad one throws
// std::invalid_argument (ValueError in Python) that names the array. Loads go through memcpy because the
// integers in an IndexedDataset's .idx begin at byte 34 and are therefore not aligned; compilers turn it
// into a plain load.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include <pybind11/numpy.h>

namespace packing {

namespace py = pybind11;

template <class T>
class View {
  public:
    View(const py::array &array, const char *name) : name_(name) {
        if (!array.dtype().equal(py::dtype::of<T>())) {
            throw std::invalid_argument(std::string(name) + ": expected " + dtype_name() + ", got " +
                                        py::cast<std::string>(py::str(array.dtype())));
        }
        if (array.ndim() != 1 || (array.shape(0) > 1 && array.strides(0) != array.itemsize())) {
            throw std::invalid_argument(std::string(name) + ": expected a contiguous array of one dimension");
        }
        data_ = static_cast<const char *>(array.data());
        size_ = array.shape(0);
    }

    std::int64_t size() const { return size_; }

    T operator[](std::int64_t i) const {
        T value;
        std::memcpy(&value, data_ + i * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
        return value;
    }

    T at(std::int64_t i) const {
        if (i < 0 || i >= size_) {
            throw std::invalid_argument(std::string(name_) + ": index " + std::to_string(i) + " is outside 0.." +
                                        std::to_string(size_ - 1));
        }
        return (*this)[i];
    }

    // Begin to load element i, if there is one.
    void prefetch(std::int64_t i) const {
        if (i >= 0 && i < size_) {
            __builtin_prefetch(data_ + i * static_cast<std::int64_t>(sizeof(T)));
        }
    }

    // Write `count` elements from element `from` on, widened; the caller has checked the range.
    void copy(std::int64_t from, std::int64_t count, std::int64_t *out) const {
        const char *start = data_ + from * static_cast<std::int64_t>(sizeof(T));
        for (std::int64_t i = 0; i < count; ++i) {
            T value;
            std::memcpy(&value, start + i * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
            out[i] = static_cast<std::int64_t>(value);
        }
    }

  private:
    static std::string dtype_name() { return py::cast<std::string>(py::str(py::dtype::of<T>())); }

    const char *name_;
    const char *data_;
    std::int64_t size_;
};

// The tokens of documents listed one after the other, each followed by a separator except the last.
//
// A "unit" is a document with the separator behind it. Units `0 .. last - 1` of `document_ids` are in the
// stream; of a document longer than `longest` only the first `longest` tokens are.
class Stream {
  public:
    Stream(const py::array &document_ids, const py::array &lengths, std::int64_t separator, std::int64_t last,
           std::int64_t longest)
        : document_ids_(document_ids, "document_ids"), lengths_(lengths, "lengths"), separator_(separator), last_(last),
          longest_(longest) {
        if (separator < 0 || last < 0 || last > document_ids_.size() || longest < 0) {
            throw std::invalid_argument("stream: separator length, last and longest must be in range");
        }
    }

    std::int64_t last() const { return last_; }
    std::int64_t document(std::int64_t position) const { return document_ids_.at(position); }

    std::int64_t document_length(std::int64_t position) const {
        const std::int64_t length = lengths_.at(document(position));
        if (length < 0) {
            throw std::invalid_argument("lengths: document " + std::to_string(document(position)) + " has length " +
                                        std::to_string(length));
        }
        return length < longest_ ? length : longest_;
    }

    // Begin to load what `document_length` will look at.
    void prefetch(std::int64_t position) const {
        if (position < last_) {
            lengths_.prefetch(document_ids_[position]);
        }
    }

    // Tokens of the separator behind the document at `position`.
    std::int64_t separator_after(std::int64_t position) const { return position + 1 < last_ ? separator_ : 0; }

  private:
    View<std::int64_t> document_ids_;
    View<std::int32_t> lengths_;
    std::int64_t separator_;
    std::int64_t last_;
    std::int64_t longest_;
};

} // namespace packing
