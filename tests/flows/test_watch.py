"""Status as a person or a program watches it: until the scene is complete, or its run is gone."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows import watch
from flows.watch import watch_status
from smartsplat.errors import NotRunning

SCENE = Path("a.zarr")

RUN = {
    "running": True,
    "host": "here",
    "pid": 12,
    "heard_seconds_ago": 3.2,
    "jobs_a_second": 2.5,
    "megapixels_a_minute": 39.3,
    "seconds_left": 700.0,
    "memory_bytes": 1_500_000_000,
}

WORKING: dict[str, Any] = {
    "scene": "a.zarr",
    "complete": False,
    "share": 0.425,
    "stages": [{"stage": "ingest", "done": 4, "total": 4, "failed": 0}],
    "tiles": {"done": 0, "failed": {"tile (3, 4)": "a cosmic ray"}, "missing": [f"({n}, 0)" for n in range(20)]},
    "now": {"stage": "settle", "phase": 2, "done": 5, "failed": 1, "left": 16, "total": 21},
    "psnr": {"db": 31.256, "stage": "settle", "tiles": 5},
    "run": RUN,
}

COMPLETE = WORKING | {"complete": True, "share": 1.0, "stages": [], "now": None, "psnr": None, "run": None}


@pytest.fixture
def states(monkeypatch) -> Callable[..., None]:
    """``states(*found)``: what one look after the other finds."""

    def follow(*found: dict[str, Any]) -> None:
        looks = iter(found)
        monkeypatch.setattr(watch, "status", lambda scene: next(looks))

    return follow


def test_without_a_terminal_each_look_is_a_line_that_says_the_most_important(states, capsys):
    states(WORKING, COMPLETE)
    watch_status(SCENE, every=0, as_json=False)
    first, last = capsys.readouterr().out.splitlines()
    assert first == (
        "settle, phase 2: 5/21, 1 failed, 16 left, 42% of all, 12 min left, 2.5 jobs/s, 39.3 Mpx/min, 1.50 GB, 31.26 dB"
    )
    assert last == "complete"


def test_with_json_each_look_is_an_object_on_a_line(states, capsys):
    states(WORKING, WORKING, COMPLETE)
    watch_status(SCENE, every=0, as_json=True)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [WORKING, WORKING, COMPLETE]


def test_on_a_terminal_a_table_that_fits_it_is_drawn_again_and_again(states, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(watch, "Console", lambda: Console(file=screen, force_terminal=True, width=80, height=24))
    many = [{"stage": f"stage {n}", "done": 0, "total": 4, "failed": 0} for n in range(100)]
    states(WORKING | {"stages": many}, COMPLETE)
    watch_status(SCENE, every=0, as_json=False)
    drawn = screen.getvalue()
    for text in ("running: process 12 on here", "12 min", "2.5 jobs/s", "31.26 dB", "tiles missing", "complete"):
        assert text in drawn
    assert "..." not in drawn.replace("(7, 0), ...", ""), "nothing is cut off"


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (None, r"unfinished: run compress again to resume$"),
        (
            RUN | {"running": False},
            r"run compress again to resume \(process 12 on here, last heard of 3 s ago, is gone",
        ),
    ],
)
def test_a_run_that_is_gone_ends_the_watch_and_it_is_said_what_to_do(run, says, states, capsys):
    states(WORKING, WORKING | {"run": run})
    with pytest.raises(NotRunning, match=says):
        watch_status(SCENE, every=0, as_json=False)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_run_on_another_host_is_watched_on_and_it_is_said_when_it_was_heard_of(states, capsys):
    states(*[WORKING | {"run": RUN | {"running": None, "memory_bytes": None}}] * 3, COMPLETE)
    watch_status(SCENE, every=0, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "from another host: process 12 on here, last heard of 3 s ago" in lines[0]


def test_what_is_not_known_is_left_out(states, capsys):
    unknown = dict.fromkeys(("jobs_a_second", "megapixels_a_minute", "seconds_left", "memory_bytes"))
    now = WORKING["now"] | {"stage": "evaluate", "phase": None, "total": None, "left": None}
    states(WORKING | {"run": RUN | unknown, "psnr": WORKING["psnr"] | {"db": None}, "now": now}, COMPLETE)
    watch_status(SCENE, every=0, as_json=False)
    assert capsys.readouterr().out.splitlines()[0] == "evaluate, 42% of all, exact"


@pytest.mark.slow
def test_another_process_sees_a_run_live_and_die(smartsplat, photo_file, quick, tmp_path):
    scene = tmp_path / "a.zarr"
    command = [sys.executable, "-c", "from flows.cli import main; main()", "compress", str(photo_file), str(scene)]
    with subprocess.Popen([*command, *quick], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for _ in range(6):
            assert process.stderr.readline()
        process.send_signal(signal.SIGSTOP)  # it lives, and does not get ahead of us
        found = json.loads(smartsplat("status", scene, "--json").stdout)
        assert (found["complete"], found["run"]["running"], found["run"]["pid"]) == (False, True, process.pid)
        assert found["run"]["memory_bytes"] > 1e7
        assert found["run"]["seconds_left"] > 0
        assert 0 < found["share"] < 1
        assert f"running: process {process.pid}" in smartsplat("status", scene).stdout
        process.kill()
        process.wait()
    found = json.loads(smartsplat("status", scene, "--json").stdout)
    assert (found["run"]["running"], found["run"]["pid"]) == (False, process.pid)
    done = smartsplat("status", scene, "--watch")
    assert done.returncode == 1
    assert f"unfinished: run compress again to resume (process {process.pid}" in done.stderr
    assert smartsplat("compress", photo_file, scene, *quick).returncode == 0
    done = smartsplat("status", scene, "--watch", "--json")
    assert (done.returncode, json.loads(done.stdout)["complete"]) == (0, True)


@pytest.mark.slow
def test_whoever_stops_watching_hears_no_complaint_and_no_success(smartsplat, photo_file, quick, tmp_path):
    scene = tmp_path / "a.zarr"
    prefix = [sys.executable, "-c", "from flows.cli import main; main()"]
    with subprocess.Popen(
        [*prefix, "compress", str(photo_file), str(scene), *quick], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for _ in range(4):
            assert process.stderr.readline()
        process.send_signal(signal.SIGSTOP)
        command = [*prefix, "status", str(scene), "--watch", "--every", "0.1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
            assert watching.stdout is not None
            assert watching.stdout.readline()
            watching.send_signal(signal.SIGINT)
            _, errors = watching.communicate(timeout=30)
        process.kill()
    assert (watching.returncode, errors) == (1, "")
