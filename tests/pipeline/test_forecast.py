"""The model of a run's work: its parts are those a run goes through, and cost what their pairs and pixels say."""

from __future__ import annotations

import pytest

from pipeline.compress import compress, prepare
from pipeline.forecast import run_parts, seconds_left
from pipeline.progress import NoProgress
from smartsplat.geometry import TileGrid
from smartsplat.schedule import FitPass, InsertPass

GRID = TileGrid(height=1000, width=1300, tile=100, halo=10)


def work_of(*passes: FitPass | InsertPass, grid: TileGrid = GRID) -> float:
    """Return the work of the fit alone."""
    return sum(part.work for part in run_parts(passes, grid, count=100, rated=True) if part.stage.startswith("fit"))


class Names(NoProgress):
    def __init__(self) -> None:
        self.started: list[str] = []

    def start(self, stage: str, *, total: int, done: int) -> None:
        self.started.append(stage)


@pytest.mark.parametrize("settings", [{"nominal_ratio": 5.25}, {"count": 200}])
def test_the_parts_are_those_that_a_run_goes_through(settings, quick, photo, write_tiff, tmp_path, serial):
    source, config = write_tiff(tmp_path / "a.tif", photo("china", 70, 100)), quick(tile=48, halo=6, **settings)
    plan = prepare(source, tmp_path / "a.zarr", config=config, resources=serial).plan
    names = Names()
    compress(source, tmp_path / "a.zarr", config=config, resources=serial, progress=names)
    parts = run_parts(plan.passes, plan.grid, count=plan.count, rated=plan.byte_budget is not None)
    assert [part.name for part in parts] == names.started


def test_the_work_of_a_fit_grows_with_its_pairs_and_shrinks_with_the_square_of_its_level():
    few, many = work_of(FitPass(pairs=10)), work_of(FitPass(pairs=40))
    assert many - few == pytest.approx(30 * GRID.height * GRID.width)
    assert work_of(FitPass(pairs=20, ssim_pairs=20)) == many
    assert work_of(FitPass(pairs=40, factor=4)) == pytest.approx(many / 16)


def test_the_phases_of_a_sweep_share_the_scene():
    for factor in (1, 2, 8):
        parts = run_parts([FitPass(pairs=5, factor=factor)], GRID, count=1, rated=False)
        phases = [part.pixels for part in parts if part.stage.startswith("fit")]
        assert len(phases) == 4
        assert sum(phases) == GRID.height * GRID.width


def test_the_work_does_not_depend_on_the_tiles():
    one = TileGrid(height=1000, width=1300, tile=4000, halo=100)
    assert work_of(FitPass(pairs=9), grid=one) == pytest.approx(work_of(FitPass(pairs=9)))


def test_a_run_that_has_done_nothing_knows_no_time_and_one_that_is_done_has_none_left():
    assert seconds_left(total=10, done=4, done_now=0, seconds=5) is None
    assert seconds_left(total=10, done=10, done_now=3, seconds=5) == 0


def test_what_earlier_runs_did_shortens_the_rest_but_does_not_count_as_pace():
    assert seconds_left(total=100, done=50, done_now=10, seconds=10) == 50
    assert seconds_left(total=100, done=90, done_now=10, seconds=10) == 10
