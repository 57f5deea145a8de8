"""Gaussians to bytes: quantisation, and entropy coding of the integers; `encode_tile` and `decode_tile` do both."""

from __future__ import annotations

from smartsplat.codec.quantize import Steps, color_noise, requantized, suitable_precisions
from smartsplat.codec.tile import FORMAT_VERSION, decode_tile, encode_tile

__all__ = ["FORMAT_VERSION", "Steps", "color_noise", "decode_tile", "encode_tile", "requantized", "suitable_precisions"]
