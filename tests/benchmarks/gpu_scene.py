"""A whole scene with the CUDA engine: how long each step takes, and what comes out.

python -m tests.benchmarks.gpu_scene [--side 8192] [--tile 512] [--engine cuda]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile

from flows.settings import scene_config
from pipeline.compress import Step, execute, prepare
from pipeline.plan import Resources
from pipeline.progress import NoProgress


def main() -> None:
    """Make an image, compress it, and print what each step took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=8192, help="px")
    parser.add_argument("--tile", type=int, default=512, help="px")
    parser.add_argument("--ratio", type=float, default=100)
    parser.add_argument("--engine", default="cuda")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "made.tif"
        tifffile.imwrite(source, made_image(arguments.side), photometric="rgb", tile=(256, 256))
        config = scene_config("standard", ratio=arguments.ratio, tile=arguments.tile)
        resources = Resources(executor="serial", engine=arguments.engine)
        preparation = prepare(source, Path(folder) / "made.zarr", config=config, resources=resources)
        started = time.perf_counter()
        report = execute(preparation, keep_work=False, progress=NoProgress(), do=timed)
    seconds = time.perf_counter() - started
    print(f"{arguments.side} px, tile {arguments.tile}, {arguments.engine}: {seconds:.1f} s in all")
    print(report.to_dict())


def timed(step: Step) -> None:
    """Do a step and print what it took."""
    started = time.perf_counter()
    step.work()
    print(f"{time.perf_counter() - started:8.2f} s {step.name}", flush=True)


def made_image(side: int) -> np.ndarray:
    """Return an image with structure at every size from 4 px on, 8 bit, always the same."""
    rng, image = np.random.default_rng(0), np.zeros((side, side, 3), np.float32)
    cell = 4
    while cell <= side // 4:
        count = side // cell + 2
        noise = rng.normal(0, cell**0.5, (count, count, 3)).astype(np.float32)
        places = np.arange(side) / cell
        before, share = places.astype(int), (places % 1).astype(np.float32)
        rows = noise[before] + share[:, None, None] * (noise[before + 1] - noise[before])
        image += rows[:, before] + share[:, None] * (rows[:, before + 1] - rows[:, before])
        cell *= 4
    low, high = np.percentile(image[::16, ::16], (1, 99))
    return (np.clip((image - low) / (high - low), 0, 1) * 255).astype(np.uint8)


if __name__ == "__main__":
    main()
