"""A tile whose fit fails: the scene can be resumed, or goes on without that fit if asked to, and says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import pipeline.optimize
from pipeline.compress import compress
from pipeline.decode import open_scene
from pipeline.jobs import FailurePolicy
from smartsplat.errors import ConfigError, FitError, StageIncomplete
from storage.scene import Scene


@pytest.fixture
def source(tmp_path, photo, write_tiff) -> Path:
    return write_tiff(tmp_path / "a.tif", photo("china", 100, 130))  # 2 x 3 tiles


@pytest.fixture
def poisoned(monkeypatch):
    """One tile at full resolution whose Levenberg-Marquardt ends in NaN."""
    fit = pipeline.optimize.fit_tiles

    def fit_tiles(target, own, **options):
        done = fit(target, own, **options)
        if options["work"].pairs and options["work"].factor == 1 and own[0].origin == (64, 64):
            raise FitError("the fit has come to values that are no numbers (NaN or infinite)")
        return done

    monkeypatch.setattr("pipeline.optimize.fit_tiles", fit_tiles)
    return monkeypatch


def test_a_poisoned_tile_leaves_a_scene_to_resume_and_an_error_that_says_how(
    source, tmp_path, quick, serial, poisoned, files
):
    config = quick()
    with pytest.raises(StageIncomplete) as caught:
        compress(source, tmp_path / "a.zarr", config=config, resources=serial)
    message = str(caught.value)
    assert "1 of 1 jobs failed" in message
    assert "tile (1, 1): the fit has come to values that are no numbers" in message
    assert "run the same command again" in message
    assert "--on-failure fallback" in message
    assert [list(jobs) for jobs in Scene.open(tmp_path / "a.zarr").failures().values()] == [["tile (1, 1)"]]
    poisoned.undo()
    report = compress(source, tmp_path / "a.zarr", config=config, resources=serial)
    compress(source, tmp_path / "b.zarr", config=config, resources=serial)
    assert report.degraded == ()
    assert files(tmp_path / "a.zarr") == files(tmp_path / "b.zarr")


def test_a_poisoned_tile_is_degraded_if_asked_for_and_the_scene_says_which(source, tmp_path, quick, serial, poisoned):
    policy = FailurePolicy(fallback=True)
    report = compress(source, tmp_path / "a.zarr", config=quick(), resources=serial, policy=policy)
    assert report.degraded == ("tile (1, 1)",)
    assert report.to_dict()["degraded"] == ["tile (1, 1)"]
    assert open_scene(tmp_path / "a.zarr").manifest.degraded == ("tile (1, 1)",)
    poisoned.undo()
    whole = compress(source, tmp_path / "b.zarr", config=quick(), resources=serial, policy=policy)
    assert whole.degraded == ()
    assert whole.quality["psnr"] > report.quality["psnr"]
    assert compress(source, tmp_path / "a.zarr", config=quick(), resources=serial).degraded == ("tile (1, 1)",)


def test_what_a_fit_degraded_before_a_kill_is_on_record_until_it_is_done_properly(
    source, tmp_path, quick, serial, poisoned, files
):
    class Killed(BaseException):
        pass

    def killed(group, *arguments, **options):
        raise Killed

    with poisoned.context() as patched:
        patched.setattr("pipeline.optimize._colors_only", killed)
        with pytest.raises(Killed):
            compress(source, tmp_path / "a.zarr", config=quick(), resources=serial, policy=FailurePolicy(fallback=True))
    (jobs,) = Scene.open(tmp_path / "a.zarr").degraded().values()
    assert list(jobs) == ["tile (1, 1)"]
    poisoned.undo()
    report = compress(source, tmp_path / "a.zarr", config=quick(), resources=serial)
    compress(source, tmp_path / "b.zarr", config=quick(), resources=serial)
    assert report.degraded == ()
    assert files(tmp_path / "a.zarr") == files(tmp_path / "b.zarr")


def test_fits_that_take_longer_than_allowed_are_stopped_and_colors_are_solved_all_the_same(
    source, tmp_path, quick, serial
):
    policy = FailurePolicy(fit_seconds=1e-9)
    with pytest.raises(StageIncomplete, match="longer than the 1e-09 s allowed"):
        compress(source, tmp_path / "a.zarr", config=quick(), resources=serial, policy=policy)
    policy = dataclasses.replace(policy, fallback=True)
    report = compress(source, tmp_path / "a.zarr", config=quick(), resources=serial, policy=policy)
    assert {f"tile ({row}, {col})" for row in range(2) for col in range(3)} <= set(report.degraded)
    flat = np.asarray(open_scene(tmp_path / "a.zarr")[:, :]).std()
    assert flat > 20, "colors alone show the photo"


def test_a_damaged_source_is_no_failure_that_a_fallback_may_hide(source, tmp_path, quick, serial, monkeypatch):
    def read_target(*arguments, **options):
        raise OSError("input/output error")

    monkeypatch.setattr("pipeline.optimize.read_target", read_target)
    with pytest.raises(StageIncomplete, match="OSError: input/output error"):
        compress(source, tmp_path / "a.zarr", config=quick(), resources=serial, policy=FailurePolicy(fallback=True))


@pytest.mark.parametrize("given", [{"most": -1}, {"fit_seconds": 0}, {"fit_seconds": float("inf")}])
def test_a_policy_out_of_range_is_refused(given):
    with pytest.raises(ConfigError):
        FailurePolicy(**given)
