"""Morton order: Gaussians near in the tile become near in the stream, and their positions a sorted list of integers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SPREADS = (
    (16, 0x0000FFFF0000FFFF),
    (8, 0x00FF00FF00FF00FF),
    (4, 0x0F0F0F0F0F0F0F0F),
    (2, 0x3333333333333333),
    (1, 0x5555555555555555),
)

MORTON_LIMIT = 1 << 31
"""Cells along a side must be fewer, so that a code fits 62 bits."""


def morton_codes(cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the bits of (y, x) interleaved, y's above x's: ``(N, 2)`` to ``(N,)``.

    Examples
    --------
    >>> import numpy as np
    >>> morton_codes(np.array([[0, 1], [1, 0], [3, 3]])).tolist()
    [1, 2, 15]
    """
    return (_spread(cells[:, 0]) << 1) | _spread(cells[:, 1])


def morton_cells(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the cells (y, x) of Morton codes: the inverse of `morton_codes`.

    Examples
    --------
    >>> import numpy as np
    >>> morton_cells(np.array([1, 2, 15])).tolist()
    [[0, 1], [1, 0], [3, 3]]
    """
    return np.stack([_gather(codes >> 1), _gather(codes)], axis=1)


def _spread(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Put a zero between each two bits."""
    for shift, mask in _SPREADS:
        values = (values | (values << shift)) & mask
    return values


def _gather(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Take every second bit."""
    codes = codes & _SPREADS[-1][1]
    for (shift, _), mask in zip(_SPREADS[::-1], [mask for _, mask in _SPREADS[-2::-1]] + [0xFFFFFFFF], strict=True):
        codes = (codes | (codes >> shift)) & mask
    return codes
