"""Archives: all of them to their end, in bounded steps."""

import bz2
import gzip
import io
import lzma
import os
import struct
import subprocess
import sys
import zlib

import pytest
import zstandard

from megatron_ultralong.data.tokenizing.compression import StreamError, unpacked

ENDINGS = {".gz": gzip, ".bz2": bz2, ".xz": lzma, ".zst": zstandard}
SKIPPABLE = struct.pack("<II", 0x184D2A53, 5) + b"abcde"


def unpack(ending, content):
    return list(unpacked(io.BytesIO(content), ending, lambda size: None))


@pytest.mark.parametrize("ending", ENDINGS)
def test_members_one_after_the_other(ending):
    compress = ENDINGS[ending].compress
    parts = [b"one" * 50_000, b"", os.urandom(200_000), b"end"]
    archive = b"".join(compress(part) for part in parts)
    assert b"".join(unpack(ending, archive)) == b"".join(parts)
    assert b"".join(unpack(ending, b"")) == b""
    if ending != ".zst":
        padded = compress(b"one") + bytes(1 << 17) + compress(b"two") + bytes(8)
        assert b"".join(unpack(ending, padded)) == b"onetwo"
    counted = []
    list(unpacked(io.BytesIO(archive), ending, counted.append))
    assert sum(counted) == len(archive)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("content", [b"\0" * 300_000, b"some text, and more of it\n" * 9_000, os.urandom(150_000)])
def test_an_archive_cut_anywhere_is_an_error(ending, content):
    whole = ENDINGS[ending].compress(content)
    for before in (b"", ENDINGS[ending].compress(b"first")):
        for cut in {*range(1, min(len(whole), 40)), *range(max(1, len(whole) - 40), len(whole)), len(whole) // 2}:
            with pytest.raises(StreamError, match=r"is truncated|cannot be decompressed"):
                unpack(ending, before + whole[:cut])


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_no_archive_or_has_something_behind_it(ending):
    for content in (b"plain text", bytes(100), ENDINGS[ending].compress(b"x") + b"plain text"):
        with pytest.raises(StreamError, match=r"cannot be decompressed \(.*\); fetch or compress it|is truncated"):
            unpack(ending, content)


def test_zstandard_of_every_kind():
    text = b"text " * 1000
    unsized = zstandard.ZstdCompressor(write_content_size=False)
    stream = unsized.compressobj()
    flushed = (
        stream.compress(text) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) + stream.compress(text) + stream.flush()
    )
    checked = zstandard.ZstdCompressor(write_checksum=True).compress(text)
    for archive, times in [
        (unsized.compress(text), 1),
        (flushed, 2),
        (SKIPPABLE + checked + SKIPPABLE + SKIPPABLE + unsized.compress(text) + SKIPPABLE, 2),
        (unsized.compress(b"") + checked + unsized.compress(b""), 1),
        (SKIPPABLE, 0),
    ]:
        assert b"".join(unpack(".zst", archive)) == text * times


def long_window(log):
    """A frame with a window of 2^log bytes and one raw block of it: header and block by RFC 8878."""
    return struct.pack("<IBB", 0xFD2FB528, 0, (log - 10) << 3) + (1 | 5 << 3).to_bytes(3, "little") + b"hello"


def test_a_window_of_2_gib_is_read_and_a_longer_one_refused():
    assert b"".join(unpack(".zst", long_window(31))) == b"hello"
    with pytest.raises(StreamError, match="requires too much memory"):
        unpack(".zst", long_window(32))


def test_an_xz_dictionary_beyond_256_mib_is_refused():
    archive = bytearray(lzma.compress(b"x", preset=0))
    assert archive[14:16] == b"\x21\x01"  # the block's header: LZMA2, one byte of properties
    archive[16] = 34  # a dictionary of 512 MiB
    archive[20:24] = struct.pack("<I", zlib.crc32(archive[12:20]))
    with pytest.raises(StreamError, match="Memory usage limit"):
        unpack(".xz", bytes(archive))


PEAK = """
import io, resource, sys
from megatron_ultralong.data.tokenizing import streams
from megatron_ultralong.data.tokenizing.compression import unpacked
content, ending, lines = open(sys.argv[1], "rb").read(), sys.argv[2], sys.argv[3] == "lines"
streams.LONGEST_LINE = 1 << 22
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
blocks = unpacked(io.BytesIO(content), ending, lambda size: None)
next(blocks)
before, size, largest = peak(), 0, 0
for block in streams.line_blocks(blocks) if lines else blocks:
    largest = max(largest, len(block[0]) if lines else len(block))
    size += 0 if lines else len(block)
    del block
print(size, largest, (peak() - before) * 1024)
"""


def bomb(ending, size):
    """Zeros without an end of a line."""
    packer = {
        ".gz": lambda: zlib.compressobj(1, wbits=31),
        ".bz2": lambda: bz2.BZ2Compressor(1),
        ".xz": lambda: lzma.LZMACompressor(preset=0),
        ".zst": lambda: zstandard.ZstdCompressor(level=1).compressobj(),
    }[ending]()
    zeros = bytes(1 << 20)
    return b"".join([*(packer.compress(zeros) for _ in range(size >> 20)), packer.flush()])


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("what", ["blocks", "lines"])
def test_what_a_small_archive_unpacks_to_is_never_held(tmp_path, ending, what):
    """1.5 GB of .zst (from 50 kB), and 256 MiB of the slower ones, a block at a time; and as one line."""
    size = (1536 if ending == ".zst" else 256) << 20
    path = tmp_path / "bomb"
    path.write_bytes(bomb(ending, size))
    assert path.stat().st_size < size / 200
    done = subprocess.run([sys.executable, "-c", PEAK, path, ending, what], capture_output=True, text=True, check=True)
    total, largest, peak = map(int, done.stdout.split())
    if what == "blocks":
        assert size - (1 << 22) <= total < size and largest <= 1 << 22
    else:
        assert 1 << 22 < largest <= 1 << 24  # cut, but longer than any line that is accepted
    assert peak < 64 << 20
