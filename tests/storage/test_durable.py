"""Metadata is on the disk before anyone may count on it, and a scene's files are before it is said to be finished."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from smartsplat.errors import StoreError
from storage.durable import sync_tree
from storage.groups import create_array, create_group, disk_errors


@pytest.fixture
def events(monkeypatch) -> list[tuple[str, Path]]:
    """What is synced, and what takes its name, in order."""
    found: list[tuple[str, Path]] = []

    def recorded(kind: str, function: Callable, path_of: Callable[..., Path]) -> Callable:
        def call(*arguments, **options):
            path = path_of(*arguments)
            result = function(*arguments, **options)
            found.append((kind, path))
            return result

        return call

    monkeypatch.setattr("os.fsync", recorded("sync", os.fsync, lambda file: Path(f"/proc/self/fd/{file}").readlink()))
    monkeypatch.setattr("os.replace", recorded("name", os.replace, lambda old, new: Path(new)))
    return found


def assert_synced(events: list[tuple[str, Path]], file: Path) -> None:
    names = [index for index, event in enumerate(events) if event == ("name", file)]
    assert names, f"{file} was not written"
    for index in names:
        kind, partial = events[index - 1]
        assert kind == "sync"
        assert partial.parent == file.parent
        assert partial.suffix == ".partial", "its bytes are synced before the file has its name"
        assert events[index + 1 : index + 3] == [("sync", file.parent), ("sync", file.parent.parent)], "then its names"


def test_metadata_is_synced_before_it_takes_its_name_and_its_name_after(tmp_path, events):
    group = create_group(tmp_path / "g", {"a": 1})
    create_array(group, "b", working=True, shape=(4,), chunks=(2,), dtype="float32", fill_value=0)
    group.attrs["a"] = 2
    assert_synced(events, tmp_path / "g" / "zarr.json")
    assert_synced(events, tmp_path / "g" / "b" / "zarr.json")
    assert sum(kind == "name" for kind, _ in events) == 3


def test_chunks_are_not_synced_as_they_are_many_and_can_be_made_again(tmp_path, events):
    group = create_group(tmp_path / "g", {})
    array = create_array(group, "b", working=True, shape=(4,), chunks=(2,), dtype="float32", fill_value=0)
    events.clear()
    array[:] = 1
    assert [kind for kind, _ in events] == ["name", "name"]


def test_metadata_that_cannot_be_written_leaves_what_was_there_and_no_part(tmp_path, monkeypatch):
    group = create_group(tmp_path / "g", {"a": 1})
    before = (tmp_path / "g" / "zarr.json").read_bytes()

    def fails(file: int) -> None:
        raise OSError("the disk is broken")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(OSError, match="broken"):
        group.attrs["a"] = 2
    assert [file.name for file in (tmp_path / "g").iterdir()] == ["zarr.json"]
    assert (tmp_path / "g" / "zarr.json").read_bytes() == before


def test_a_tree_is_synced_with_all_files_and_folders_but_those_left_out(tmp_path, events):
    for name in ("a", "b/c", "b/work/d", "work/e"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    sync_tree(tmp_path, without="work")
    synced = [path.relative_to(tmp_path) for _, path in events]
    assert sorted(map(str, synced)) == [".", "a", "b", "b/c", "b/work", "b/work/d"]


def test_a_file_that_vanishes_while_it_is_written_is_named_with_the_way_out(tmp_path):
    gone = tmp_path / "c.0.0.partial"
    says = r"a\.zarr: a file vanished .*c\.0\.0\.partial.* run the same command again"
    with pytest.raises(StoreError, match=says), disk_errors("a.zarr"):
        gone.replace(tmp_path / "c.0.0")
