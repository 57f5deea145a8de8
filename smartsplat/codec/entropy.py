"""Integers to bytes and back: short tokens compressed with zstd, the noise below them as plain bits.

An integer below `_DIRECT` is a token by itself. A larger one becomes a token for its bit length and next bit,
and its remaining bits are stored as they are: they are as good as random, and zstd would only lengthen them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import zstandard
from numba import njit
from numpy.typing import NDArray

from smartsplat.errors import StoreError

_DIRECT_BITS = 7
_DIRECT = 1 << _DIRECT_BITS
_LARGEST_BITS = 52
_LEVEL = 19

_jit: Any = njit(cache=True, nogil=True)


class ByteReader:
    """A cursor over the bytes of one tile; never reads past their end.

    Parameters
    ----------
    data
        The stream.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes; raise `StoreError` if there are fewer."""
        if size > len(self._data) - self._at:
            raise StoreError(f"the stream ends early: {size} bytes wanted, {len(self._data) - self._at} left")
        self._at += size
        return self._data[self._at - size : self._at]

    def varint(self) -> int:
        """Return the next unsigned integer, 7 bits a byte, least significant first."""
        value = 0
        for shift in range(0, 63, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise StoreError("an integer of the stream is longer than 63 bits")

    def finish(self) -> None:
        """Raise `StoreError` if bytes are left over."""
        if self._at != len(self._data):
            raise StoreError(f"{len(self._data) - self._at} bytes are left over at the end of the stream")


def varint(value: int) -> bytes:
    """Return an unsigned integer as 7 bits a byte, least significant first.

    Examples
    --------
    >>> varint(300).hex()
    'ac02'
    """
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_integers(values: NDArray[np.int64]) -> bytes:
    """Return the bytes of a stream of integers (at least one), signed or not.

    Raises
    ------
    ValueError
        If the values span ``2^52`` or more, or the lowest is that far from 0.
    """
    low = int(values.min())
    offsets = values - low
    if int(offsets.max()) >> _LARGEST_BITS or abs(low) >> _LARGEST_BITS:
        raise ValueError(f"integers from {low} to {int(values.max())} span too much to be written")
    lengths = _bit_lengths(offsets)
    extra = np.where(offsets < _DIRECT, 0, lengths - 2)
    tokens = np.where(offsets < _DIRECT, offsets, _DIRECT + 2 * (lengths - _DIRECT_BITS - 1) + ((offsets >> extra) & 1))
    compressed = _compressor().compress(tokens.astype(np.uint8).tobytes())
    return varint(_zigzag(low)) + varint(len(compressed)) + compressed + pack_bits(offsets, extra)


def decode_integers(reader: ByteReader, count: int) -> NDArray[np.int64]:
    """Return the `count` integers that `encode_integers` wrote.

    Raises
    ------
    StoreError
        If the stream is damaged; memory stays bounded by `count`.
    """
    low = _unzigzag(reader.varint())
    if abs(low) >> _LARGEST_BITS:
        raise StoreError(f"the stream's lowest integer, {low}, is out of range")
    data = _decompress(reader.take(reader.varint()), count)
    if len(data) != count:
        raise StoreError(f"a stream holds {len(data)} integers, {count} wanted")
    leading, extra = _parts(np.frombuffer(data, np.uint8))
    if int(extra.max()) > _LARGEST_BITS - 2:
        raise StoreError("a stream holds an integer that is too long")
    return low + ((leading << extra) | unpack_bits(reader, extra))


@_jit
def _parts(tokens):  # type: ignore[no-untyped-def]
    """Return each token's leading bits, and how many plain bits follow them."""
    leading, extra = np.empty(len(tokens), np.int64), np.zeros(len(tokens), np.int64)
    for i in range(len(tokens)):
        leading[i] = tokens[i]
        if tokens[i] >= _DIRECT:
            leading[i] = 2 + (tokens[i] - _DIRECT) % 2
            extra[i] = (tokens[i] - _DIRECT) // 2 + _DIRECT_BITS - 1
    return leading, extra


def pack_bits(values: NDArray[np.int64], widths: NDArray[np.int64]) -> bytes:
    """Return the low ``widths[i]`` bits of each value, most significant first, padded with zeros to a byte."""
    shifts = _shifts(widths)
    return np.packbits((np.repeat(values, widths) >> shifts) & 1).tobytes()


def unpack_bits(reader: ByteReader, widths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the values `pack_bits` wrote."""
    total = int(widths.sum())
    return _read_bits(np.frombuffer(reader.take(-(-total // 8)), np.uint8), widths)


@_jit
def _read_bits(data, widths):  # type: ignore[no-untyped-def]
    values = np.zeros(len(widths), np.int64)
    at = 0
    for i in range(len(widths)):
        for _ in range(widths[i]):
            values[i] = (values[i] << 1) | ((data[at >> 3] >> (7 - (at & 7))) & 1)
            at += 1
    return values


def _shifts(widths: NDArray[np.int64]) -> NDArray[np.int64]:
    ends = np.cumsum(widths)
    return np.repeat(ends, widths) - 1 - np.arange(ends[-1] if len(ends) else 0)


def _bit_lengths(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the bits of each value, exactly: below 2^53 float64 holds every integer."""
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1


def _unzigzag(value: int) -> int:
    return value >> 1 if value & 1 == 0 else -((value + 1) >> 1)


def _compressor() -> zstandard.ZstdCompressor:
    # No magic number, size or checksum in each of a tile's streams: the tile knows its counts and the chunk its CRC.
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=False, write_checksum=False
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


def _decompress(data: bytes, count: int) -> bytes:
    try:
        claimed = zstandard.get_frame_parameters(data, format=zstandard.FORMAT_ZSTD1_MAGICLESS).content_size
        # A frame that states its size would get that much memory, whatever the limit given here.
        if claimed not in (count, zstandard.CONTENTSIZE_UNKNOWN):
            raise StoreError(f"a stream claims {claimed} integers, {count} wanted")
        return _decompressor().decompress(data, max_output_size=count)
    except zstandard.ZstdError as error:
        raise StoreError(f"a stream does not decompress: {error}") from error


def _decompressor() -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(format=zstandard.FORMAT_ZSTD1_MAGICLESS)
