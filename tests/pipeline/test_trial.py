"""A trial scores the Gaussians of a fit as they are, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.compress import begin, fit_steps, prepare
from pipeline.evaluate import quality_dict, score_sweep
from pipeline.progress import NoProgress
from pipeline.run import Run
from pipeline.trial import run_trial
from smartsplat.errors import BudgetError, SourceError
from smartsplat.geometry import Region
from smartsplat.metrics import score
from smartsplat.normalization import pixel_weight
from smartsplat.render import render
from storage.state import SweepState

HEIGHT, WIDTH = 70, 540  # two scored pieces


@pytest.fixture(scope="module", params=["uint8", "holes"])
def image(request, tmp_path_factory, photo, write_tiff) -> tuple[Path, np.ndarray]:
    pixels = photo("china", HEIGHT, WIDTH)
    if request.param == "holes":
        pixels = pixels[:, :, :1].astype(np.float32) * 7 - 300
        pixels[20:40, 490:530] = np.nan
    return write_tiff(tmp_path_factory.mktemp("trial") / "a.tif", pixels), pixels


@pytest.fixture(scope="module")
def fitted(image, tmp_path_factory, quick, serial) -> tuple[Run, np.ndarray]:
    """A run that has done its fit, and the pixels of its image."""
    source, pixels = image
    path = tmp_path_factory.mktemp("fitted") / "a.zarr"
    preparation = prepare(source, path, config=quick(count=600), resources=serial)
    with preparation.executor() as executor:
        run = begin(preparation, executor, progress=NoProgress())
        for step in fit_steps(run, new=True):
            step.work()
        return run, pixels


def test_the_quality_of_a_sweep_is_that_of_its_gaussians_drawn_all_at_once(fitted):
    run, pixels = fitted
    grid = run.scene.grid
    for sweep in (run.plan.last_sweep - 1, run.plan.last_sweep):
        state = SweepState.open(run.scene.work(), sweep, grid=grid)
        values = render([state.read(tile) for tile in grid], Region(y0=0, y1=HEIGHT, x0=0, x1=WIDTH))
        drawn = run.normalization.to_pixels(values, pixels.dtype)
        expected = score(pixels, drawn, peak=run.normalization.span, weight=pixel_weight(pixels))
        # Sums of the same float64 terms in another order.
        assert quality_dict(score_sweep(run, sweep)) == pytest.approx(quality_dict(expected), abs=1e-9)


def test_a_trial_has_the_quality_of_its_last_sweep_and_leaves_nothing_behind(image, fitted, tmp_path, quick, serial):
    run, _ = fitted
    trial = run_trial(image[0], quick(count=600), resources=serial, scratch=tmp_path, traced=True)
    assert trial.quality == quality_dict(score_sweep(run, run.plan.last_sweep))
    assert (trial.gaussians, trial.megapixels) == (600, HEIGHT * WIDTH / 1e6)
    seconds, psnrs = zip(*trial.trace, strict=True)
    assert len(psnrs) == 1 + run.plan.last_sweep, "as sampled, and after each sweep"
    assert list(seconds) == sorted(seconds)
    assert seconds[-1] == trial.seconds
    assert psnrs[-1] == trial.quality["psnr"] > psnrs[0]
    assert list(tmp_path.iterdir()) == []


def test_a_trial_that_fails_leaves_nothing_behind(image, tmp_path, quick, serial):
    (tmp_path / "text.tif").write_text("no image")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for source, count, error in ((tmp_path / "text.tif", 5, SourceError), (image[0], 10**6, BudgetError)):
        with pytest.raises(error):
            run_trial(source, quick(count=count), resources=serial, scratch=scratch)
        assert list(scratch.iterdir()) == []
