"""A scene made with the CUDA engine, in Triton's interpreter or on a device, is the CPU engine's scene."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pipeline.compress import compress
from pipeline.decode import open_scene
from smartsplat.config import CodecConfig, FitConfig
from smartsplat.render.kernels import INTERPRETED

pytestmark = [] if INTERPRETED else [pytest.mark.gpu]

BRIEF = FitConfig(
    start_fraction=0.5,
    color_sweeps=1,
    color_iterations=2,
    stages=1,
    stage_pairs=4,
    stage_factor=2,
    replacements=0,
    final_pairs=(4,),
    ssim_pairs=0,
)


def test_a_scene_of_either_engine_is_as_good_and_either_decodes_it(tmp_path, photo, write_tiff, quick, serial):
    pixels = photo("flower", 24, 28)
    # Quantised finely: values next to an edge may be rounded to either side.
    config = quick(count=24, fit=BRIEF, codec=CodecConfig(color_step=0.05))
    source = write_tiff(tmp_path / "a.tif", pixels)
    made = {}
    for engine in ("cpu", "cuda"):
        scene = tmp_path / f"{engine}.zarr"
        made[engine] = compress(
            source, scene, config=config, resources=dataclasses.replace(serial, engine=engine)
        ).quality["psnr"]
        images = [open_scene(scene, engine=one).render().astype(np.int64) for one in ("cpu", "cuda")]
        # Rounded to 8 bits, a pixel may fall to either side.
        assert np.abs(images[0] - images[1]).max() <= 1
    assert made["cuda"] == pytest.approx(made["cpu"], abs=0.05)
