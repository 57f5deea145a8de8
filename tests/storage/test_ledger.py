"""A ledger says which jobs are done, whoever wrote them, and takes damage for not done."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from smartsplat.errors import StoreError
from storage.groups import create_group, open_group
from storage.ledger import Ledger


@pytest.fixture
def group(tmp_path):
    return create_group(tmp_path / "g", {})


def chunk_files(path):
    return sorted(file for file in path.rglob("c.*") if file.is_file())


def test_unwritten_rows_are_nan_and_reading_one_is_refused(group):
    ledger = Ledger.create(group, "l", jobs=(3, 2), fields=4)
    assert np.isnan(ledger.read_all()).all()
    assert not ledger.done().any()
    with pytest.raises(StoreError, match=r"job \(2, 1\) has no result"):
        ledger.read((2, 1))


def test_rows_read_back_and_mark_their_jobs_done(group):
    ledger = Ledger.create(group, "l", jobs=(3, 2), fields=4)
    rng, written = np.random.default_rng(0), np.full((3, 2, 4), np.nan)
    for index in [(2, 1), (0, 0), (1, 1)]:
        written[index] = rng.normal(size=4) * 10.0 ** rng.integers(-300, 300)
        ledger.write(index, written[index])
    again = Ledger.open(group, "l")
    np.testing.assert_array_equal(again.read_all(), written)
    np.testing.assert_array_equal(again.done(), ~np.isnan(written[..., 0]))
    np.testing.assert_array_equal(again.read((2, 1)), written[2, 1])


def test_blocks_of_jobs_are_written_at_once_cut_at_the_edge(group):
    ledger = Ledger.create(group, "l", jobs=(5, 3), fields=2, chunk=(2, 2))
    ledger.write((slice(4, 5), slice(2, 3)), np.full((1, 1, 2), 7.0))
    ledger.write((slice(0, 2), slice(0, 2)), np.arange(8.0).reshape(2, 2, 2))
    expected = np.zeros((5, 3), bool)
    expected[4, 2] = expected[:2, :2] = True
    np.testing.assert_array_equal(ledger.done(), expected)
    np.testing.assert_array_equal(ledger.read((1, 0)), [4, 5])


def test_a_struck_row_is_to_be_done_again(group):
    ledger = Ledger.create(group, "l", jobs=(2,), fields=2)
    for index in range(2):
        ledger.write((index,), np.ones(2))
    ledger.strike((0,))
    assert ledger.done().tolist() == [False, True]


def test_open_or_create_keeps_what_is_there(group):
    Ledger.open_or_create(group, "l", jobs=(2,), fields=2).write((1,), np.ones(2))
    assert Ledger.open_or_create(group, "l", jobs=(2,), fields=2).done().tolist() == [False, True]


def test_a_missing_ledger_is_refused_by_name(group):
    with pytest.raises(StoreError, match="nothing-here"):
        Ledger.open(group, "nothing-here")


def test_a_damaged_row_counts_as_not_written_wherever_the_damage(group, tmp_path):
    ledger = Ledger.create(group, "l", jobs=(3,), fields=3)
    for index in range(3):
        ledger.write((index,), np.array([1.5, 2.5, index]))
    file = chunk_files(tmp_path / "g" / "l")[1]
    original = file.read_bytes()
    damages = [bytes([*original[:at], original[at] ^ 16, *original[at + 1 :]]) for at in range(len(original))]
    damages += [original[:size] for size in range(len(original))]
    for damaged in damages:
        file.write_bytes(damaged)
        assert ledger.done().tolist() == [True, False, True]
        np.testing.assert_array_equal(ledger.read_all()[[0, 2]], [[1.5, 2.5, 0], [1.5, 2.5, 2]])
        with pytest.raises((StoreError, ValueError)):
            ledger.read((1,))


WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from storage.groups import open_group
from storage.ledger import Ledger
path, first = Path(sys.argv[1]), int(sys.argv[2])
ledger = Ledger.open(open_group(path, writable=True), "l")
(path / f"ready-{first}").touch()
while not (path / "ready-0").exists() or not (path / "ready-1").exists():
    time.sleep(0.001)
for index in range(first, 40, 2):
    ledger.write((index,), np.array([index, first], float))
"""


def test_rows_of_two_processes_writing_at_once_all_survive(group, tmp_path):
    Ledger.create(group, "l", jobs=(40,), fields=2)
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "g"), str(first)]) for first in range(2)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    rows = Ledger.open(open_group(tmp_path / "g"), "l").read_all()
    np.testing.assert_array_equal(rows, [[index, index % 2] for index in range(40)])


def test_all_rows_are_read_only_if_all_are_there(group, tmp_path):
    ledger = Ledger.create(group, "l", jobs=(2, 3), fields=2)
    for index in np.ndindex(2, 3):
        with pytest.raises(StoreError, match=rf"{6 - 3 * index[0] - index[1]} jobs have no result, .* run the same"):
            ledger.read_complete()
        ledger.write(index, np.array([index[0], index[1]], float))
    np.testing.assert_array_equal(ledger.read_complete(), np.moveaxis(np.indices((2, 3)), 0, 2))
    (tmp_path / "g" / "l" / "c.1.2.0").unlink()
    with pytest.raises(StoreError, match=r"1 jobs have no result, the first of them \(1, 2\)"):
        ledger.read_complete()
