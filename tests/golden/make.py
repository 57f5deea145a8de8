"""Make the golden tiles: ``python -m tests.golden.make``, only after a change of the format, with its new number.

Of each tile there are the stream, ``NAME.bin``, and in ``tiles.json`` its steps and the integers it stands for, in the
order they are coded in.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from smartsplat.codec.attributes import LONGEST_ASPECT, Attributes, all_rotation_bits
from smartsplat.codec.coder import LARGEST
from smartsplat.codec.positions import SIDE_LIMIT
from smartsplat.codec.quantize import QuantizedGaussians, Steps, quantize
from smartsplat.codec.tile import decode_quantized, encode_quantized
from tests.conftest import make_gaussians

FOLDER = Path(__file__).parent
STEPS = Steps(mean=0.44, area=0.54, aspect=0.54, rotation=0.45, color=0.06, base_scale=2.0)


def extremes() -> QuantizedGaussians:
    """Return integers of every size there is, in cells near and far."""
    rng = np.random.default_rng(7)
    count = 30
    precisions, turned = rng.integers(0, 13, count), rng.random(count) < 0.8
    aspects = (rng.integers(0, 74 << precisions) * turned).astype(np.int64)
    values = Attributes(
        precisions=precisions,
        areas=rng.integers(-148 << precisions, 148 << precisions),
        aspects=aspects,
        rotations=rng.integers(0, 1 << all_rotation_bits(aspects, precisions, STEPS.turns)),
        colors=np.rint((LARGEST - 1) ** rng.random((count, 4))).astype(np.int64) * rng.integers(-1, 2, (count, 4)),
        places=rng.integers(0, 1 << np.maximum(precisions - 1, 0)[:, None], (count, 2)),
    )
    values.colors[0] = [LARGEST - 1, 1 - LARGEST, 0, 1]
    cells = (SIDE_LIMIT ** rng.random((count, 2))).astype(np.int64)
    cells[:3] = SIDE_LIMIT - 1
    assert LONGEST_ASPECT > 74
    return QuantizedGaussians(cells=cells, attributes=values)


def tiles() -> dict[str, tuple[QuantizedGaussians, int]]:
    """Return the tiles by name: integers and bands."""

    def random(seed: int, count: int, family: str, bands: int, side: float) -> tuple[QuantizedGaussians, int]:
        gaussians = make_gaussians(seed, count, family=family, bands=bands, shape=(side, side))  # type: ignore[arg-type]
        return quantize(gaussians, STEPS), bands

    return {
        "empty": random(0, 0, "ordinary", 3, 64),
        "one": random(1, 1, "needles", 3, 64),
        "two": random(2, 2, "ordinary", 3, 64),
        "photo": random(3, 100, "ordinary", 3, 100),
        "needles": random(4, 30, "needles", 3, 40),
        "crowd": random(5, 50, "tiny", 1, 2),
        "eight-bands": random(6, 20, "huge", 8, 512),
        "extremes": (extremes(), 4),
    }


def described(quantized: QuantizedGaussians) -> dict[str, Any]:
    """Return the integers as plain lists."""
    values = quantized.attributes
    return {"cells": quantized.cells.tolist()} | {name: getattr(values, name).tolist() for name in values.__slots__}


def main() -> None:
    """Write all files anew."""
    found: dict[str, Any] = {}
    for name, (quantized, bands) in tiles().items():
        data = encode_quantized(quantized, STEPS)
        (FOLDER / f"{name}.bin").write_bytes(data)
        decoded = decode_quantized(data, STEPS, bands=bands, max_count=len(quantized.cells))
        found[name] = {"bands": bands, "integers": described(decoded)}
    content = {"steps": dataclasses.asdict(STEPS), "tiles": found}
    (FOLDER / "tiles.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
