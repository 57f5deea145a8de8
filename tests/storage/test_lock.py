"""A scene has one writer: a second is told who the first is, and takes over from one that is dead."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smartsplat.errors import StoreError
from storage.lock import forget_dead_writer, only_writer

HOLD = "import sys, time; from pathlib import Path; from storage.lock import only_writer\n"
HOLD += "with only_writer(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)"


@pytest.fixture
def holder(tmp_path):
    """Another process that has the lock of `tmp_path`/s.zarr."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "s.zarr")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_writer_is_told_who_the_first_is(holder, tmp_path):
    says = rf"another run works on it, process {holder.pid} on .*, for \d+ s; wait"
    with pytest.raises(StoreError, match=says), only_writer(tmp_path / "s.zarr"):
        raise AssertionError
    assert holder.poll() is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=str)
def test_a_dead_writer_is_followed_at_once(holder, tmp_path, number):
    holder.send_signal(number)
    holder.wait()
    with only_writer(tmp_path / "s.zarr"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_writer_left_is_deleted_and_what_a_living_one_holds_is_not(holder, tmp_path):
    forget_dead_writer(tmp_path / "s.zarr")
    assert (tmp_path / ".s.zarr.lock").exists()
    holder.kill()
    holder.wait()
    forget_dead_writer(tmp_path / "s.zarr")
    assert list(tmp_path.iterdir()) == []


def test_within_one_process_too_there_is_one(tmp_path):
    again = only_writer(tmp_path / "s.zarr")
    with only_writer(tmp_path / "s.zarr"), only_writer(tmp_path / "other.zarr"):
        with pytest.raises(StoreError, match=f"process {os.getpid()} on "), again:
            raise AssertionError
        assert (tmp_path / ".s.zarr.lock").exists()
    with only_writer(tmp_path / "s.zarr"):
        pass


def test_of_many_at_once_each_has_it_alone(tmp_path):
    """Each adds one to a number in a file, when it gets the lock; a lost update would show."""
    number = tmp_path / "number"
    number.write_text("0")
    code = (
        "import sys, time; from pathlib import Path; from storage.lock import only_writer\n"
        "from smartsplat.errors import StoreError\n"
        "folder, done = Path(sys.argv[1]), 0\n"
        "while done < 40:\n"
        "    try:\n"
        "        with only_writer(folder / 's.zarr'):\n"
        "            value = int((folder / 'number').read_text()); time.sleep(0.0005)\n"
        "            (folder / 'number').write_text(str(value + 1)); done += 1\n"
        "    except StoreError: time.sleep(0.0003)\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert number.read_text() == "120"


def test_a_lock_file_of_another_kind_is_no_obstacle(tmp_path):
    (tmp_path / ".s.zarr.lock").write_text("rubbish")
    with only_writer(tmp_path / "s.zarr"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said_to_be(tmp_path):
    with pytest.raises(StoreError, match=r"vanished|cannot be written"), only_writer(tmp_path / "no" / "s.zarr"):
        raise AssertionError


def test_the_command_refuses_a_scene_that_another_run_works_on(tmp_path, holder):
    from PIL import Image

    Image.new("RGB", (64, 64), (10, 200, 30)).save(tmp_path / "a.png")
    code = "from flows.cli import main; main()"
    given = ["compress", str(tmp_path / "a.png"), str(tmp_path / "s.zarr"), "--gaussians", "4"]
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.search(rf"s\.zarr: another run works on it, process {holder.pid} on", done.stderr)
    assert not (tmp_path / "s.zarr").exists()


def test_a_command_that_is_told_to_end_ends_soon_and_resumes(tmp_path):
    from PIL import Image

    Image.effect_noise((900, 900), 60).convert("RGB").save(tmp_path / "a.png")
    code = "from flows.cli import main; main()"
    given = ["compress", str(tmp_path / "a.png"), str(tmp_path / "s.zarr"), "--gaussians", "6000"]
    given += ["--executor", "serial", "--workers", "1"]
    with subprocess.Popen([sys.executable, "-c", code, *given], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("fit 1 "):
                break
        process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        assert process.wait(timeout=60) == 1
        assert time.monotonic() - told < 30
        assert "run the same command again to resume" in process.stderr.read()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.png", "s.zarr"]
    assert (Path(tmp_path) / "s.zarr" / "work").is_dir()
