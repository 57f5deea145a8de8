"""The record of a run is whole or not there, and nothing ever fails for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.record import delete_record, read_record, write_record

RECORD = {"part": "fit 1 of 6", "done": 3, "seconds": 1.5}


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path


def test_a_record_comes_back_and_is_replaced_and_deleted(scene: Path):
    for done in (3, 4):
        write_record(scene, RECORD | {"done": done})
        assert read_record(scene) == RECORD | {"done": done}
        assert len(list((scene / "work").iterdir())) == 1, "nothing is left of the writing"
    delete_record(scene)
    assert read_record(scene) is None
    assert list((scene / "work").iterdir()) == []


def test_where_no_record_can_be_written_read_or_deleted_nothing_fails(tmp_path: Path):
    for scene in (tmp_path, tmp_path / "missing"):
        write_record(scene, RECORD)
        assert read_record(scene) is None
        delete_record(scene)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_record_counts_as_none(scene: Path):
    write_record(scene, RECORD)
    (file,) = (scene / "work").iterdir()
    data = file.read_bytes()
    for damaged in (*(data[:size] for size in range(len(data))), b"\xff" * 20, b"[1, 2]", b"null", b"3"):
        file.write_bytes(damaged)
        assert read_record(scene) is None
