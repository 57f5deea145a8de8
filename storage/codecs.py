"""The Zarr v3 codec ``smartsplat.gaussians``: a tile's Gaussians, float32 rows in the array, compressed in the store.

Anyone with this package installed reads the array with plain `zarr.open`: the codec is found by its entry point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.registry import register_codec

from smartsplat.codec import FORMAT_VERSION, Steps, decode_tile, encode_tile
from smartsplat.errors import StoreError
from smartsplat.gaussians import GEOMETRY_PARAMETERS, Gaussians

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

CODEC_NAME = "smartsplat.gaussians"


@dataclass(frozen=True, kw_only=True)
class GaussiansCodec(ArrayBytesCodec):
    """Array-to-bytes codec for chunks ``(1, 1, capacity, 5 + C)`` of Gaussians; NaN rows are padding.

    Lossy once: what comes back is quantised, in the order of its boxes, and encodes to the same bytes again.

    Parameters
    ----------
    steps
        Quantisation steps of the scene.
    """

    is_fixed_size = False
    steps: Steps

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the codec that a chunk's metadata describes.

        Raises
        ------
        StoreError
            If the format version is not known.
        """
        configuration = dict(data["configuration"])
        version = configuration.pop("format", None)
        if version != FORMAT_VERSION:
            raise StoreError(
                f"tile format {version} is unknown to this version, which reads format {FORMAT_VERSION}; "
                "upgrade smartsplat"
            )
        return cls(steps=Steps(**configuration))

    def to_dict(self) -> dict[str, Any]:
        """Return the metadata that `from_dict` reads."""
        return {"name": CODEC_NAME, "configuration": {"format": FORMAT_VERSION, **self.steps.to_dict()}}

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Raise: the size follows from the content."""
        raise NotImplementedError

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        rows = np.asarray(chunk_data.as_numpy_array()).reshape(chunk_spec.shape[-2:])
        gaussians = Gaussians.from_rows(rows[~np.isnan(rows[:, 0])])
        return chunk_spec.prototype.buffer.from_bytes(encode_tile(gaussians, self.steps))

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        capacity, parameters = chunk_spec.shape[-2:]
        bands = parameters - GEOMETRY_PARAMETERS
        gaussians = decode_tile(chunk_data.to_bytes(), self.steps, bands=bands, max_count=capacity)
        rows: Any = np.full(chunk_spec.shape, np.nan, np.float32)
        rows[..., : len(gaussians), :] = gaussians.to_rows()
        return chunk_spec.prototype.nd_buffer.from_ndarray_like(rows)


register_codec(CODEC_NAME, GaussiansCodec)
