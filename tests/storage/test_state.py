"""Working Gaussians by tile and sweep: what was written comes back, and nothing else is taken for it."""

from __future__ import annotations

import numpy as np
import pytest

from smartsplat.errors import StoreError
from smartsplat.gaussians import Gaussians
from smartsplat.geometry import TileGrid, TileId
from storage.groups import create_group
from storage.state import REPORT_FIELDS, SweepState

GRID = TileGrid(height=50, width=70, tile=25, halo=5)
TILE = TileId(1, 2)


@pytest.fixture
def group(tmp_path):
    return create_group(tmp_path / "g", {})


@pytest.fixture
def state(group):
    return SweepState.open_or_create(group, 2, grid=GRID, capacity=12, bands=3)


def report_of(count):
    return np.arange(len(REPORT_FIELDS), dtype=float) + np.eye(len(REPORT_FIELDS))[0] * count


def files_of(tmp_path, name, tile=TILE):
    (file,) = (tmp_path / "g" / name).glob(f"c.{tile.row}.{tile.col}.*")
    return file


def damages(data):
    """Yield the bytes with one byte changed, and cut."""
    for at in range(len(data)):
        yield bytes([*data[:at], data[at] ^ 1, *data[at + 1 :]])
    for size in range(0, len(data), 3):
        yield data[:size]


@pytest.mark.parametrize("count", [0, 1, 11, 12])
def test_gaussians_round_trip_bit_for_bit_with_their_tiles_origin(state, gaussians_of, count):
    gaussians = gaussians_of(count, count)
    state.write(TILE, gaussians, report_of(count))
    found = state.read(TILE)
    np.testing.assert_array_equal(found.to_rows(), gaussians.to_rows())
    assert found.origin == GRID.core(TILE).origin
    np.testing.assert_array_equal(state.reports.read((1, 2)), report_of(count))
    assert state.reports.done().sum() == 1


@pytest.mark.parametrize("bands", [1, 4, 8])
def test_every_number_of_bands_round_trips(group, gaussians_of, bands):
    state = SweepState.open_or_create(group, 0, grid=GRID, capacity=5, bands=bands)
    gaussians = gaussians_of(0, 4, bands=bands)
    state.write(TILE, gaussians, report_of(4))
    np.testing.assert_array_equal(state.read(TILE).to_rows(), gaussians.to_rows())


def test_opening_again_keeps_what_was_written_and_sweeps_are_apart(group, state, gaussians_of):
    state.write(TILE, gaussians_of(0, 5), report_of(5))
    again = SweepState.open_or_create(group, 2, grid=GRID, capacity=99, bands=3)
    assert again.rows.shape[2] == 12
    assert len(again.read(TILE)) == 5
    other = SweepState.open_or_create(group, 3, grid=GRID, capacity=12, bands=3)
    with pytest.raises(StoreError):
        other.read(TILE)


def test_a_scene_without_any_gaussians_has_a_state_too(group):
    state = SweepState.open_or_create(group, 0, grid=GRID, capacity=0, bands=3)
    state.write(TILE, Gaussians.empty(bands=3), report_of(0))
    assert len(state.read(TILE)) == 0


def test_a_tile_never_written_is_refused(state):
    with pytest.raises(StoreError):
        state.read(TILE)


def test_a_sweep_never_begun_is_refused(group):
    with pytest.raises(StoreError, match="state-7"):
        SweepState.open(group, 7, grid=GRID)


def test_gaussians_without_their_report_do_not_count_as_written(state, gaussians_of):
    # What a kill between the two writes leaves.
    state.write(TILE, gaussians_of(0, 5), report_of(5))
    state.reports.strike((1, 2))
    assert not state.reports.done().any()
    with pytest.raises(StoreError):
        state.read(TILE)


@pytest.mark.parametrize("claimed", [4, 6, 0, 12])
def test_a_report_that_claims_another_count_is_refused(state, gaussians_of, claimed):
    state.write(TILE, gaussians_of(0, 5), report_of(claimed))
    with pytest.raises(StoreError, match=f"does not hold its {claimed} Gaussians"):
        state.read(TILE)


def test_lost_gaussians_are_refused(state, gaussians_of, tmp_path):
    state.write(TILE, gaussians_of(0, 5), report_of(5))
    files_of(tmp_path, "state-2").unlink()
    with pytest.raises(StoreError, match=r"tile \(1, 2\), sweep 2"):
        state.read(TILE)


@pytest.mark.parametrize("name", ["state-2", "state-2-reports"])
def test_damage_anywhere_is_refused_for_its_tile_alone(state, gaussians_of, tmp_path, name):
    state.write(TILE, gaussians_of(0, 3), report_of(3))
    state.write(TileId(0, 0), gaussians_of(1, 3), report_of(3))
    file = files_of(tmp_path, name)
    for damaged in damages(file.read_bytes()):
        file.write_bytes(damaged)
        with pytest.raises(StoreError):
            state.read(TILE)
    assert len(state.read(TileId(0, 0))) == 3


def test_recheck_strikes_out_exactly_what_does_not_read_back(state, gaussians_of, tmp_path):
    for tile in GRID:
        state.write(tile, gaussians_of(tile.col, 3), report_of(3))
    assert state.recheck() == 0
    for tile in (TILE, TileId(0, 1)):
        file = files_of(tmp_path, "state-2", tile)
        file.write_bytes(file.read_bytes()[:-1])
    assert state.recheck() == 2
    missing = [tile for tile in GRID if not state.reports.done()[tile.row, tile.col]]
    assert missing == [TileId(0, 1), TILE]
