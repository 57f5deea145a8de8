"""The README's commands and snippets, run as a newcomer would run them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a real photo as `image.tif`."""
    folder = tmp_path_factory.mktemp("readme")
    Image.fromarray(load_sample_image("china.jpg")).save(folder / "image.tif")
    return folder


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True)


@pytest.mark.slow
def test_commands_and_snippets_of_the_readme_run(folder: Path) -> None:
    (commands,) = blocks("bash")
    for command in commands.strip().splitlines():
        done = run(command.split(), folder)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert np.asarray(Image.open(folder / "region.png")).shape == (400, 440, 3)
    assert np.asarray(Image.open(folder / "overview.jpg")).shape == (107, 160, 3)

    snippets = blocks("python")
    assert len(snippets) == 2
    for snippet in snippets:
        done = run([sys.executable, "-W", "error::FutureWarning", "-c", snippet], folder)
        assert done.returncode == 0, f"{snippet}\n{done.stderr}"
        assert done.stdout


def test_both_make_targets_of_the_readme_exist() -> None:
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README.read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert shutil.which("make")
