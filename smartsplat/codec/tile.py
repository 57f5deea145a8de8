"""One tile's Gaussians to bytes and back (`FORMAT.md` gives the layout)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from smartsplat.codec.attributes import Attributes, code_attributes
from smartsplat.codec.coder import LARGEST, Coder
from smartsplat.codec.positions import SIDE_LIMIT, code_positions
from smartsplat.codec.quantize import QuantizedGaussians, Steps, are_in_range, dequantize, quantize
from smartsplat.errors import StoreError
from smartsplat.gaussians import Gaussians

FORMAT_VERSION = 2
"""Format 1 was that of development versions before the first release."""

_BYTES_A_VALUE = 72  # at most: every bit of the longest integer at the least probability there is
_LONGEST_VARINT = 5


def encode_tile(gaussians: Gaussians, steps: Steps) -> bytes:
    """Return the compressed stream of a tile's Gaussians, in the order of the boxes their means lie in.

    Raises
    ------
    ValueError
        If a number is NaN, infinite or too large to be written, a scale not positive, or a mean negative.

    Examples
    --------
    >>> import numpy as np
    >>> steps = Steps(mean=0.25, area=0.5, aspect=0.5, rotation=0.4, color=0.02, base_scale=2.0)
    >>> one = Gaussians(
    ...     means=np.array([[3.1, 7.9]]),
    ...     scales=np.array([[2.0, 2.0]]),
    ...     rotations=np.zeros(1),
    ...     colors=np.array([[0.5, 0.25, 0.125]]),
    ... )
    >>> decoded = decode_tile(encode_tile(one, steps), steps, bands=3, max_count=10)
    >>> bool(np.abs(decoded.means - one.means).max() < 0.125)
    True
    """
    return encode_quantized(quantize(gaussians, steps), steps)


def encode_quantized(
    quantized: QuantizedGaussians, steps: Steps, *, ended: Callable[[str, float], None] | None = None
) -> bytes:
    """Return the stream of these integers; `ended` is told each quantity and the bits written when it is done."""
    count = len(quantized.cells)
    if count == 0:
        return _varint(0)
    values, extents = quantized.attributes, quantized.cells.max(axis=0) + 1
    if extents.max() > SIDE_LIMIT:
        raise ValueError(f"means beyond {SIDE_LIMIT} cells cannot be written")
    middle = _middle(values)
    data = np.empty(1024 + _BYTES_A_VALUE * count * (6 + values.colors.shape[1]), np.uint8)
    coder = Coder(data, decodes=False)
    order = code_positions(coder, quantized.cells, extents)

    def tell(quantity: str) -> None:
        if ended is not None:
            ended(quantity, coder.information())

    tell("position")
    ordered = Attributes(**{name: getattr(values, name)[order] for name in Attributes.__slots__})
    cells = quantized.cells[order]
    code_attributes(coder, cells, extents, ordered, middle=middle, turns=steps.turns, ended=tell)
    header = [_varint(number) for number in (count, *extents.tolist(), _zigzag(middle))]
    return b"".join(header) + coder.finish()


def decode_tile(
    data: bytes, steps: Steps, *, bands: int, max_count: int, origin: tuple[int, int] = (0, 0)
) -> Gaussians:
    """Return the Gaussians of a stream: what quantising and dequantising the encoded ones gives.

    Parameters
    ----------
    max_count
        Most Gaussians to accept; bounds the memory a damaged stream can claim.

    Raises
    ------
    StoreError
        If the stream is not one that `encode_tile` writes.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # steps come from outside, too
        found = dequantize(decode_quantized(data, steps, bands=bands, max_count=max_count), steps, origin=origin)
    if not found.is_finite():
        raise StoreError("the stream is damaged, or its steps are: not all of its numbers are finite")
    return found


def decode_quantized(data: bytes, steps: Steps, *, bands: int, max_count: int) -> QuantizedGaussians:
    """Return the integers of a stream; as `decode_tile`."""
    count, at = _read_varint(data, 0)
    if count > max_count:
        raise StoreError(f"the stream claims {count} Gaussians, at most {max_count} fit")
    cells = np.zeros((count, 2), np.int64)
    values = Attributes(
        **{name: np.zeros(count, np.int64) for name in ("precisions", "areas", "aspects", "rotations")},
        colors=np.zeros((count, bands), np.int64),
        places=np.zeros((count, 2), np.int64),
    )
    found = QuantizedGaussians(cells=cells, attributes=values)
    if count == 0:
        if at != len(data):
            raise StoreError(f"{len(data) - at} bytes are left over at the end of the stream")
        return found
    extents = np.zeros(2, np.int64)
    for axis in range(2):
        extents[axis], at = _read_varint(data, at)
    middle, at = _read_varint(data, at)
    if extents.min() < 1 or extents.max() > SIDE_LIMIT or middle > LARGEST:
        raise StoreError(f"the stream claims {extents[0]} x {extents[1]} cells: out of range")
    coded = np.frombuffer(data, np.uint8)[at:].copy()
    coder = Coder(coded, decodes=True)
    code_positions(coder, cells, extents)
    middle = _unzigzag(middle)
    code_attributes(coder, cells, extents, values, middle=middle, turns=steps.turns)
    as_written = coder.is_canonical() and middle == _middle(values) and (cells.max(axis=0) + 1 == extents).all()
    if not (as_written and are_in_range(values, steps)):
        raise StoreError("the stream is damaged: these are not the bytes that its content is written as")
    return found


def _middle(values: Attributes) -> int:
    """Return the median of the areas in coarsest steps; the lower one if there are two."""
    return int(np.sort(values.areas >> values.precisions)[(len(values.areas) - 1) // 2])


def _varint(value: int) -> bytes:
    """Return an unsigned integer as 7 bits a byte, least significant first."""
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the integer at `at`, and where it ends."""
    value = 0
    for place in range(at, min(at + _LONGEST_VARINT, len(data))):
        value |= (data[place] & 127) << 7 * (place - at)
        if data[place] < 128:
            if data[place] == 0 and place > at:
                break
            return value, place + 1
    raise StoreError("the stream's header is cut off, or damaged")


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1


def _unzigzag(value: int) -> int:
    return value >> 1 if value & 1 == 0 else -((value + 1) >> 1)
