"""Gaussians to bytes: Morton order, quantisation, entropy coding; `encode_tile` and `decode_tile` do all three."""

from __future__ import annotations

from smartsplat.codec.quantize import Steps, requantized
from smartsplat.codec.tile import FORMAT_VERSION, decode_tile, encode_tile

__all__ = ["FORMAT_VERSION", "Steps", "decode_tile", "encode_tile", "requantized"]
