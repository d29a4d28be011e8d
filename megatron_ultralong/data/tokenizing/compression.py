"""What .gz, .bz2, .xz and .zst files unpack to, in blocks of at most 4 MiB however small the archive is.

Archives of several members, streams or frames are read to their end, zstd's skippable frames and padding of zeros are
passed over, and a truncated archive is an error, never a short file. Memory: two blocks, and what a format looks back
at: 0.9 MB for .bz2, up to 256 MiB for .xz, and for .zst the window that it was written with, up to the 2 GiB of
`zstd --long=31`; what asks for more is refused.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol

ENDINGS = (".gz", ".bz2", ".xz", ".zst")

_READ = 1 << 16
_MOST = 1 << 22
_ZSTD_MOST = 1 << 18  # which is allocated for every step, however little comes
_XZ_MEMORY = 1 << 28
_ZSTD_WINDOW = 1 << 31

Count = Callable[[int], Any]
"""Called with the number of bytes of every block that is read from the disk."""


class StreamError(Exception):
    """An input is damaged; the message says how and the mend, and begins after its name."""


def compression(path: str) -> str:
    """The ending that says how a file is compressed, in small letters; "" for a plain file."""
    ending = path[path.rfind(".") :].lower()
    return ending if ending in ENDINGS else ""


def unpacked(stream: BinaryIO, ending: str, count: Count) -> Iterator[bytes]:
    """Yield what an archive unpacks to.

    Raises:
        StreamError: it is damaged or truncated.
    """
    if ending == ".zst":
        return _unpack_zstd(stream, count)
    return _unpack(stream, _DECODERS[ending], count)


class _Decoder(Protocol):
    """What the standard library's decompressors have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib's decompressor with the manners of bz2's and lzma's."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        some = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        self.needs_input = not self._zlib.unconsumed_tail and len(some) < max_length
        return some


_DECODERS: dict[str, Callable[[], _Decoder]] = {
    ".gz": _Gzip,
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY),
}


def _unpack(stream: BinaryIO, new: Callable[[], _Decoder], count: Count) -> Iterator[bytes]:
    decoder, members, begun = new(), 0, False
    while block := stream.read(_READ):
        size = len(block)
        while True:
            if members and not begun:
                block = block.lstrip(b"\0")  # padding
            if not block and (not begun or decoder.needs_input):
                break
            begun = True
            try:
                some = decoder.decompress(block, _MOST)
            except Exception as error:  # zlib.error, OSError, lzma.LZMAError
                raise _damaged(error) from None
            yield some
            block = b""
            if decoder.eof:
                block, decoder, members, begun = decoder.unused_data, new(), members + 1, False
        count(size)
    if begun:
        raise _truncated()


_SENTINEL = b"the end of the file\n" * 4


class _WithSentinel:
    """A stream of zstd's frames with one more behind them: it is decoded if, and only if, those before are whole."""

    def __init__(self, stream: BinaryIO, frame: bytes, count: Count) -> None:
        self._stream, self._frame, self._count = stream, frame, count
        self.ended = False

    def read(self, size: int) -> bytes:
        block = self._stream.read(size)
        self._count(len(block))
        if not block and not self.ended:
            self.ended, block = True, self._frame
        return block


def _unpack_zstd(stream: BinaryIO, count: Count) -> Iterator[bytes]:
    import zstandard

    source = _WithSentinel(stream, zstandard.ZstdCompressor(write_checksum=True).compress(_SENTINEL), count)
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    reader = decompressor.stream_reader(source, read_size=_READ, read_across_frames=True)  # type: ignore[arg-type]
    held = b""  # as much as the sentinel, which may turn out to be it
    while True:
        try:
            block = reader.read1(_ZSTD_MOST)  # which does not wait for more input, and so loses little to an error
        except zstandard.ZstdError as error:
            raise (_truncated() if source.ended else _damaged(error)) from None
        if not block:
            break
        block = held + block
        held = block[-len(_SENTINEL) :]
        yield block[: -len(_SENTINEL)]
        del block
    if held != _SENTINEL:
        raise _truncated()


def _truncated() -> StreamError:
    return StreamError("is truncated; fetch or compress it again.")


def _damaged(error: Exception) -> StreamError:
    return StreamError(f"cannot be decompressed ({error}); fetch or compress it again.")
