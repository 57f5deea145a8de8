"""Working Gaussians by tile and sweep: what was written comes back, and nothing else is taken for it."""

from __future__ import annotations

import numpy as np
import pytest

from smartsplat.errors import StoreError
from smartsplat.gaussians import Gaussians
from smartsplat.geometry import TileGrid, TileId
from storage.groups import create_group, open_group
from storage.ledger import Ledger
from storage.state import CANDIDATES, REPORT_FIELDS, STATE, SweepState, forget_sweeps, latest_sweep

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
    with pytest.raises(StoreError, match=r"state-2 of tile \(1, 2\)"):
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


# --- More than one chunk ----------------------------------------------------------------------------------------------


@pytest.fixture
def large(group):
    """A state whose tiles take three chunks, the last one cut by the edge of the array."""
    state = SweepState.open_or_create(group, 1, grid=GRID, capacity=5000, bands=2)
    assert state.rows.chunks[2] == 2048
    return state


def chunks_of(tmp_path, tile=TILE):
    return sorted(file.name for file in (tmp_path / "g" / "state-1").glob(f"c.{tile.row}.{tile.col}.*"))


@pytest.mark.parametrize(
    ("count", "chunks"), [(0, 1), (1, 1), (2047, 1), (2048, 1), (2049, 2), (4096, 2), (4097, 3), (5000, 3)]
)
def test_tiles_of_more_than_a_chunk_round_trip_and_store_only_the_chunks_they_fill(
    large, gaussians_of, tmp_path, count, chunks
):
    gaussians = gaussians_of(count, count, family="ordinary", bands=2)
    large.write(TILE, gaussians, report_of(count))
    assert chunks_of(tmp_path) == [f"c.1.2.{index}.0" for index in range(chunks)]
    again = SweepState.open(open_group(tmp_path / "g"), 1, grid=GRID)
    np.testing.assert_array_equal(again.read(TILE).to_rows(), gaussians.to_rows())
    assert again.recheck() == 0


@pytest.mark.parametrize("count", [0, 3, 2048, 3000])
def test_a_tile_written_again_with_fewer_gaussians_has_those_alone(large, gaussians_of, count):
    large.write(TILE, gaussians_of(0, 5000, family="ordinary", bands=2), report_of(5000))
    fewer = gaussians_of(1, count, family="ordinary", bands=2)
    large.write(TILE, fewer, report_of(count))
    np.testing.assert_array_equal(large.read(TILE).to_rows(), fewer.to_rows())
    assert large.recheck() == 0


@pytest.mark.parametrize("chunk", range(3))
@pytest.mark.parametrize("harm", ["flipped", "cut", "lost"])
def test_damage_to_any_chunk_of_a_tile_is_found_and_made_good(large, gaussians_of, tmp_path, chunk, harm):
    gaussians = gaussians_of(0, 4500, family="ordinary", bands=2)
    large.write(TILE, gaussians, report_of(4500))
    file = tmp_path / "g" / "state-1" / f"c.1.2.{chunk}.0"
    data = file.read_bytes()
    if harm == "lost":
        file.unlink()
    elif harm == "cut":
        file.write_bytes(data[: len(data) // 2])
    else:
        file.write_bytes(bytes([*data[:99], data[99] ^ 1, *data[100:]]))
    with pytest.raises(StoreError, match=r"state-1 of tile \(1, 2\)"):
        large.read(TILE)
    assert large.recheck() == 1
    large.write(TILE, gaussians, report_of(4500))
    np.testing.assert_array_equal(large.read(TILE).to_rows(), gaussians.to_rows())


def test_a_state_that_holds_more_than_its_report_says_is_refused(large, gaussians_of):
    large.write(TILE, gaussians_of(0, 2100, family="ordinary", bands=2), report_of(2099))
    with pytest.raises(StoreError, match="does not hold its 2099 Gaussians"):
        large.read(TILE)


# --- Which sweeps are kept --------------------------------------------------------------------------------------------


def begin(group, sweep, kind=STATE):
    state = SweepState.open_or_create(group, sweep, grid=GRID, capacity=3, bands=1, kind=kind)
    if kind == CANDIDATES:
        Ledger.create(group, f"{CANDIDATES}-{sweep}-scores", jobs=GRID.shape, fields=4)
    return state


def folders(tmp_path):
    return sorted(path.name for path in (tmp_path / "g").iterdir() if path.is_dir())


def test_the_latest_sweep_is_the_highest_whose_state_was_begun(group):
    assert latest_sweep(group) is None
    begin(group, 0, CANDIDATES)
    assert latest_sweep(group) is None
    for sweep, latest in ((0, 0), (9, 9), (10, 10), (2, 10)):
        begin(group, sweep)
        assert latest_sweep(group) == latest
    begin(group, 11, CANDIDATES)
    assert latest_sweep(group) == 10


def test_a_state_killed_while_it_was_deleted_does_not_count_and_is_made_anew(group, tmp_path, gaussians_of):
    begin(group, 3)
    begin(group, 4).write(TILE, gaussians_of(0, 2, bands=1), report_of(2))
    (tmp_path / "g" / "state-4-reports" / "zarr.json").unlink()  # the first that went, of all its files
    assert latest_sweep(group) == 3
    assert not begin(group, 4).reports.done().any()
    assert latest_sweep(group) == 4


def test_forgotten_sweeps_are_gone_with_all_that_belongs_to_them_and_the_others_are_untouched(
    group, tmp_path, gaussians_of
):
    for sweep in (0, 1, 9, 10):
        begin(group, sweep).write(TILE, gaussians_of(sweep, 3, bands=1), report_of(3))
    for sweep in (1, 9, 11):
        begin(group, sweep, CANDIDATES)
    Ledger.create(group, "survey", jobs=(3,), fields=1)
    forget_sweeps(group, before=9)
    kept = [f"candidates-{sweep}{part}" for sweep in (11, 9) for part in ("", "-reports", "-scores")]
    kept += [f"state-{sweep}{part}" for sweep in (9, 10) for part in ("", "-reports")]
    assert folders(tmp_path) == sorted([*kept, "survey"])
    for sweep in (9, 10):
        found = SweepState.open(group, sweep, grid=GRID).read(TILE)
        np.testing.assert_array_equal(found.to_rows(), gaussians_of(sweep, 3, bands=1).to_rows())
    forget_sweeps(group, before=9)
    assert folders(tmp_path) == sorted([*kept, "survey"])
    forget_sweeps(group, before=12)
    assert folders(tmp_path) == ["survey"]
    assert latest_sweep(group) is None


def test_states_and_candidates_of_a_sweep_are_apart(group, gaussians_of):
    states, candidates = begin(group, 5), begin(group, 5, CANDIDATES)
    states.write(TILE, gaussians_of(0, 1, bands=1), report_of(1))
    assert not candidates.reports.done().any()
    candidates.write(TILE, gaussians_of(1, 3, bands=1), report_of(3))
    assert (len(states.read(TILE)), len(candidates.read(TILE))) == (1, 3)
    with pytest.raises(StoreError, match=r"candidates-5 of tile \(1, 1\)|candidates-5-reports: job \(1, 1\)"):
        candidates.read(TileId(1, 1))
