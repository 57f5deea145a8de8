"""Small pictures of an image and of its scene, for a person to see at a glance that they are alike."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from pipeline.decode import MIN_SCALE, SceneView, open_scene
from smartsplat.gaussians import Floats
from smartsplat.normalization import Normalization, pixel_weight
from smartsplat.optim.levels import coarsen
from storage.source import load_vips, read_info, read_strips

FOLDER = "thumbnails"

_SIDE = 192  # px at the most
_STRIP_ROWS = 256
_QUALITY = 80
_LARGEST_FACTOR = round(1 / MIN_SCALE)  # at which a scene is rendered


def thumbnail_files(scene: Path, *, root: Path) -> tuple[Path, Path]:
    """Return the files of the image's and the scene's thumbnail, under the folder `root` that the scene lies below."""
    stem = root / FOLDER / scene.relative_to(root).with_suffix("")
    return stem.with_name(f"{stem.name}.before.jpg"), stem.with_name(f"{stem.name}.after.jpg")


def write_thumbnails(source: str, scene: Path, *, root: Path) -> None:
    """Write both thumbnails of a finished scene."""
    before, after = thumbnail_files(scene, root=root)
    before.parent.mkdir(parents=True, exist_ok=True)
    view = open_scene(scene)
    factor = _factor(max(view.shape[:2]))
    _write(_of_source(source, view.normalization, factor=factor), before)
    _write(_of_scene(view, factor=factor), after)


def _factor(side: int) -> int:
    """Return how many px of the image one of its thumbnail stands for.

    Examples
    --------
    >>> _factor(100), _factor(4096), _factor(100_000)
    (1, 22, 576)
    """
    factor = math.ceil(side / _SIDE)
    return factor if factor <= _LARGEST_FACTOR else _LARGEST_FACTOR * math.ceil(factor / _LARGEST_FACTOR)


def _of_source(source: str, normalization: Normalization, *, factor: int) -> Floats:
    rows = factor * max(1, _STRIP_ROWS // factor)
    strips = read_strips(read_info(source), strip_height=rows)
    return np.concatenate(
        [coarsen(normalization.to_values(strip), pixel_weight(strip), factor=factor)[0] for _, strip in strips]
    )


def _of_scene(view: SceneView, *, factor: int) -> Floats:
    rendered = min(factor, _LARGEST_FACTOR)
    values = view.normalization.to_values(view.render(scale=1 / rendered))
    return coarsen(values, None, factor=factor // rendered)[0]


def _write(values: Floats, file: Path) -> None:
    """Write values in the unit range as a screen shows them: one band or three, 8 bits."""
    shown = values[:, :, : 3 if values.shape[2] >= 3 else 1]
    pixels = np.clip(np.rint(255 * shown), 0, 255).astype(np.uint8)
    load_vips().Image.new_from_array(pixels).jpegsave(str(file), Q=_QUALITY, keep="none")
