"""Time of a whole scene at quarter scale, beside that at full scale: just opened, and with its tiles decoded.

python -m tests.benchmarks.zoom SCENE
"""

from __future__ import annotations

import math
import sys
from functools import partial

import numpy as np

from flows.bench import median_seconds
from pipeline.decode import open_scene

SCALE = 0.25


def main() -> None:
    """Print the times, and how far the quarter scale is from box-averaging the full one."""
    view = open_scene(sys.argv[1])
    for name, render in (
        ("just opened", lambda scale: open_scene(sys.argv[1]).render(scale=scale)),
        ("tiles decoded", lambda scale: view.render(scale=scale)),
    ):
        full, quarter = median_seconds([partial(render, scale) for scale in (1.0, SCALE)])
        print(f"{name}: full {full:.3f} s, quarter {quarter:.3f} s, ratio {quarter / full:.3f}")
    factor = round(1 / SCALE)
    full, quarter = view.render().astype(np.float64), view.render(scale=SCALE)
    height, width = full.shape[0] // factor, full.shape[1] // factor
    blocks = full[: height * factor, : width * factor].reshape(height, factor, width, factor, -1)
    error = np.square(quarter[:height, :width] - blocks.mean(axis=(1, 3))).mean()
    decibels = 20 * math.log10(view.normalization.span) - 10 * math.log10(error)
    print(f"quarter scale against the box-averaged full scale: {decibels:.1f} dB")


if __name__ == "__main__":
    main()
