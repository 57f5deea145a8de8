"""The command as a shell runs it, and a scene to run it on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

COMMAND = [sys.executable, "-c", "from flows.cli import main; main()"]

Command = Callable[..., subprocess.CompletedProcess[str]]


def _run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    # As on a machine without a CUDA device, whatever there is.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    options.setdefault("env", environment | {"CUDA_VISIBLE_DEVICES": ""})
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120, **options)


@pytest.fixture(scope="session")
def smartsplat() -> Command:
    """``smartsplat(*arguments)``: run the command to its end in a process of its own."""
    return _run


@pytest.fixture(scope="session")
def photo_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo, 150 x 200 px."""
    path = tmp_path_factory.mktemp("photo") / "china.png"
    pixels = load_sample_images().images[0][120:270, 200:400]
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)
    return path


QUICK = ("--preset", "draft", "--tile", "64", "--ratio", "8", "--executor", "serial", "--workers", "1")


@pytest.fixture(scope="session")
def quick() -> tuple[str, ...]:
    """Options with which `photo_file` is compressed in a second or two."""
    return QUICK


@pytest.fixture(scope="session")
def compressed(photo_file: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A scene of `photo_file`, and the run of the command that made it; not to be changed."""
    scene = photo_file.with_name("china.zarr")
    return scene, _run("compress", photo_file, scene, *QUICK, "--json")
