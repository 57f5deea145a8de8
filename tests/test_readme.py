"""The README's commands and snippets, run as a newcomer would run them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

README = Path(__file__).parent.parent / "README.md"
OPERATIONS = README.parent / "docs" / "operations.md"


def blocks(language: str, page: Path = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a real photo as `image.tif`."""
    folder = tmp_path_factory.mktemp("readme")
    Image.fromarray(load_sample_image("china.jpg")).save(folder / "image.tif")
    return folder


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True)


def run_all(commands: str, folder: Path) -> None:
    for command in commands.strip().splitlines():
        done = run(shlex.split(command), folder)
        assert done.returncode == 0, f"{command}\n{done.stderr}"


@pytest.mark.slow
def test_commands_and_snippets_of_the_readme_run(folder: Path) -> None:
    use, _ = blocks("bash")
    run_all(use, folder)
    assert np.asarray(Image.open(folder / "region.png")).shape == (400, 440, 3)
    assert np.asarray(Image.open(folder / "overview.jpg")).shape == (107, 160, 3)

    snippets = blocks("python")
    assert len(snippets) == 2
    for snippet in snippets:
        done = run([sys.executable, "-W", "error::FutureWarning", "-c", snippet], folder)
        assert done.returncode == 0, f"{snippet}\n{done.stderr}"
        assert done.stdout


@pytest.mark.slow
def test_commands_of_the_page_on_operations_run(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("china", "flower"):
        Image.fromarray(load_sample_image(f"{name}.jpg")[150:300, 250:450]).save(tmp_path / "images" / f"{name}.png")
    for block in blocks("bash", OPERATIONS):
        done = run(["bash", "-e", "-c", block], tmp_path)
        assert done.returncode == 0, f"{block}\n{done.stderr}"
    for scene in ("scenes/china.png.zarr", "scenes/flower.png.zarr", "scenes-of-list/east/china.zarr"):
        assert (tmp_path / scene).is_dir()


@pytest.mark.slow
def test_benchmarks_of_the_readme_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    # As small as shows that they run: what they find is not looked at.
    Image.fromarray(load_sample_image("china.jpg")[150:220, 250:350]).save(tmp_path / "image.tif")
    _, measure = blocks("bash")
    run_all(measure, tmp_path)
    assert np.asarray(Image.open(tmp_path / "ablation.png")).ndim == 3


def test_both_make_targets_of_the_readme_exist() -> None:
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README.read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert shutil.which("make")
