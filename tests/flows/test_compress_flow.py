"""The journey as a Prefect flow makes the same bytes, in few tasks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.settings import preset_names, scene_config
from pipeline.compress import prepare, steps
from pipeline.executors import SerialExecutor
from pipeline.plan import Resources
from pipeline.progress import NoProgress


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_flow_makes_the_same_bytes(compressed, photo_file, quick, tmp_path):
    scene = tmp_path / "flow.zarr"
    home = tmp_path / "prefect"
    # Its temporary server is slow to start where all cores are busy.
    environment = os.environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }
    command = [sys.executable, "-c", "from flows.cli import main; main()", "compress", str(photo_file), str(scene)]
    # Files, not pipes: a temporary server that outlives the run would keep a pipe open.
    with (tmp_path / "stdout").open("w") as stdout, (tmp_path / "stderr").open("w") as stderr:
        done = subprocess.run(
            [*command, *quick, "--flow", "--json"], env=environment, stdout=stdout, stderr=stderr, timeout=200
        )
    assert done.returncode == 0, (tmp_path / "stderr").read_text()[-2000:]
    assert json.loads((tmp_path / "stdout").read_text())["scene"] == str(scene)
    assert contents(scene) == contents(compressed[0])
    assert home.is_dir(), "Prefect keeps its data where it is told"


@pytest.mark.parametrize("preset", preset_names())
def test_a_flow_has_four_tasks_a_pass_at_the_most_whatever_the_number_of_tiles(preset, tmp_path):
    Image.fromarray(np.zeros((300, 400), np.uint8)).save(tmp_path / "a.png")
    counts, passes = [], 0
    for tile in (8, 30):  # several blocks of tiles at each level
        config = scene_config(preset, gaussians=10, tile=tile, halo=1)
        path = tmp_path / f"{tile}.zarr"
        preparation = prepare(tmp_path / "a.png", path, config=config, resources=Resources(executor="serial"))
        passes = len(preparation.plan.passes)
        counts.append(len(steps(preparation, SerialExecutor(threads=1), progress=NoProgress())))
    # Beside those of the fit there are eight of one task each, and the four phases in which it settles.
    assert counts[0] == counts[1] <= 4 * passes + 12


def test_the_flow_of_the_standard_preset_has_a_hundred_tasks_at_the_most(tmp_path):
    Image.fromarray(np.zeros((300, 400), np.uint8)).save(tmp_path / "a.png")
    config = scene_config("standard", gaussians=5000, tile=16, halo=2)
    resources = Resources(executor="serial")
    preparation = prepare(tmp_path / "a.png", tmp_path / "a.zarr", config=config, resources=resources)
    assert len(steps(preparation, SerialExecutor(threads=1), progress=NoProgress())) <= 100
