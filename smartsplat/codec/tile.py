"""One tile's Gaussians to bytes and back (`FORMAT.md` gives the layout)."""

from __future__ import annotations

import numpy as np

from smartsplat.codec.entropy import ByteReader, decode_integers, encode_integers, pack_bits, unpack_bits, varint
from smartsplat.codec.order import MORTON_LIMIT, morton_cells, morton_codes
from smartsplat.codec.quantize import Integers, QuantizedGaussians, Steps, dequantize, quantize, rotation_bits
from smartsplat.errors import StoreError
from smartsplat.gaussians import Gaussians

FORMAT_VERSION = 1


def encode_tile(gaussians: Gaussians, steps: Steps) -> bytes:
    """Return the compressed stream of a tile's Gaussians, in Morton order of their means.

    Raises
    ------
    ValueError
        If a number is NaN or infinite, a scale not positive, or a mean negative.

    Examples
    --------
    >>> import numpy as np
    >>> steps = Steps(mean=0.25, area=0.1, aspect=0.2, rotation=0.25, color=0.02, base_scale=2.0)
    >>> one = Gaussians(
    ...     means=np.array([[3.1, 7.9]]),
    ...     scales=np.array([[2.0, 2.0]]),
    ...     rotations=np.zeros(1),
    ...     colors=np.array([[0.5, 0.25, 0.125]]),
    ... )
    >>> decoded = decode_tile(encode_tile(one, steps), steps, bands=3, max_count=10)
    >>> decoded.means.tolist()
    [[3.125, 7.875]]
    """
    if len(gaussians) == 0:
        return varint(0)
    quantized = quantize(gaussians, steps)
    if quantized.cells.max() >= MORTON_LIMIT:
        raise ValueError(f"means beyond {MORTON_LIMIT} steps of {steps.mean} px cannot be written")
    codes = morton_codes(quantized.cells)
    order = np.argsort(codes, kind="stable")
    codes = codes[order]
    streams = [
        varint(len(codes)),
        encode_integers(np.diff(codes, prepend=0)),
        encode_integers(quantized.areas[order]),
        encode_integers(quantized.aspects[order]),
        pack_bits(quantized.rotations[order], rotation_bits(quantized.aspects[order], steps)),
        *(encode_integers(band) for band in quantized.colors[order].T),
    ]
    return b"".join(streams)


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
        If the stream is damaged.
    """
    reader = ByteReader(data)
    count = reader.varint()
    if count > max_count:
        raise StoreError(f"the stream claims {count} Gaussians, at most {max_count} fit")
    gaussians = Gaussians.empty(bands=bands, origin=origin)
    if count:
        gaussians = dequantize(_read_integers(reader, count, steps=steps, bands=bands), steps, origin=origin)
    reader.finish()
    if not gaussians.is_finite():
        raise StoreError("the stream holds a number that is not finite")
    return gaussians


def _read_integers(reader: ByteReader, count: int, *, steps: Steps, bands: int) -> QuantizedGaussians:
    gaps = decode_integers(reader, count)
    codes = np.cumsum(gaps)
    if gaps.min() < 0 or codes.min() < 0 or codes[-1] >= MORTON_LIMIT**2:
        raise StoreError("the stream's positions are out of order or out of range")
    areas = decode_integers(reader, count)
    aspects = decode_integers(reader, count)
    if aspects.min() < 0:
        raise StoreError("the stream holds a negative log-aspect")
    rotations = unpack_bits(reader, rotation_bits(aspects, steps))
    colors: list[Integers] = [decode_integers(reader, count) for _ in range(bands)]
    return QuantizedGaussians(
        cells=morton_cells(codes),
        areas=areas,
        aspects=aspects,
        rotations=rotations,
        colors=np.stack(colors, axis=1),
    )
