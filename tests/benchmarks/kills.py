"""Kill a run on two workers at random moments, resume it, and compare every byte with a run that was left alone.

python -m tests.benchmarks.kills [KILLS [SEED]]

A kill takes the run's own process, or all of its processes, or one worker or what workers are forked from. Ends with an
error if bytes differ, files of killed writes are left, or a process outlives its run.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

COMMAND = [sys.executable, "-m", "flows.cli", "compress"]
OPTIONS = ["--ratio", "8", "--preset", "draft", "--tile", "64", "--executor", "dask", "--workers", "2"]

SECONDS_TO_END = 30  # of workers whose run is gone, on a busy machine
MOST_LINES, MOST_SECONDS = 40, 0.5  # that a run goes on for, before something is killed; two lines a stage
FIRST_MOMENTS = 6.0  # seconds, if it is not for any line

VICTIMS = ("run", "all processes", "worker")


@dataclass
class Tally:
    """What came of the kills."""

    moments: Counter[str] = field(default_factory=Counter)
    victims: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    scenes: int = 0

    @property
    def kills(self) -> int:
        """How many there were."""
        return self.victims.total()


class Command:
    """A started `smartsplat compress`, in a process group of its own, and what it says."""

    def __init__(self, source: Path, scene: Path) -> None:
        self._process = subprocess.Popen(
            [*COMMAND, str(source), str(scene), *OPTIONS],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        self.lines.extend(iter(self._process.stderr.readline, ""))

    @property
    def moment(self) -> str:
        """The stage it is in."""
        words = [re.match(r"[a-z]+( of colors)?", line) for line in self.lines]
        return next((word[0] for word in reversed(words) if word), "start")

    def goes_on(self, *, lines: int, seconds: float) -> bool:
        """Wait until it has said so many more lines, and some seconds; return whether it is running still."""
        end = len(self.lines) + lines
        while self._process.poll() is None and len(self.lines) < end:
            time.sleep(0.01)
        time.sleep(seconds)
        return self._process.poll() is None

    def wait(self) -> int:
        code = self._process.wait()
        self._reader.join(SECONDS_TO_END)
        return code

    def family(self) -> list[psutil.Process]:
        """Return its process and all that it started."""
        try:
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def kill(self, victim: str) -> bool:
        """Kill all or a part of it; return whether there was such a part."""
        if victim == "all processes":
            os.killpg(self._process.pid, signal.SIGKILL)
        elif victim == "run":
            self._process.kill()
        else:
            # Workers, and the process that they are forked from.
            workers = [
                each for each in self.family()[1:] if "multiprocessing.forkserver" in " ".join(_command_line(each))
            ]
            if not workers:
                return False
            random.choice(workers).kill()
        return True


def main() -> None:
    """Print what was killed when, and what came of it."""
    kills, seed = (int(word) for word in [*sys.argv[1:], *("50", "0")[len(sys.argv) - 1 :]])
    random.seed(seed)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = make_image(folder / "image.png")
        (folder / "whole").mkdir()
        assert Command(source, folder / "whole" / "scene.zarr").wait() == 0
        expected = digests(folder / "whole")
        tally = Tally()
        for number in itertools.count():
            if tally.kills >= kills:
                break
            make_scene(source, folder / str(number), tally, kills=kills, expected=expected)
    print(f"{tally.kills} kills, {tally.scenes} scenes, all as undisturbed, in {time.perf_counter() - started:.0f} s")
    for what, counts in (("killed", tally.victims), ("in stage", tally.moments), ("the run was then", tally.outcomes)):
        print(f"{what}: {', '.join(f'{name} {count}' for name, count in counts.most_common())}")


def make_scene(source: Path, folder: Path, tally: Tally, *, kills: int, expected: dict[str, str]) -> None:
    """Run until the scene is finished, killing as long as there are kills left; check what is there then."""
    folder.mkdir()
    code = -1
    while code != 0:
        command = Command(source, folder / "scene.zarr")
        members, victims = _disturb(command, tally, kills=kills)
        code = command.wait()
        _, alive = psutil.wait_procs(members, timeout=SECONDS_TO_END)
        orphans = [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
        if orphans:
            raise SystemExit(f"processes outlive a run of which were killed {victims}: {orphans}")
        # A job whose workers are killed again and again may fail: that is said, and done again.
        if code > 0 and not ("worker" in victims and "run the same command again" in command.lines[-1]):
            raise SystemExit(f"a run ended with {code}:\n{''.join(command.lines)}")
        if victims:
            tally.outcomes["killed" if code < 0 else "finished all the same" if code == 0 else "incomplete"] += 1
    tally.scenes += 1
    found = digests(folder)
    if found != expected:
        raise SystemExit(f"another scene than undisturbed: {found.items() ^ expected.items()}")


def _disturb(command: Command, tally: Tally, *, kills: int) -> tuple[list[psutil.Process], list[str]]:
    """Kill at random moments, till the run is dead or over; return the processes there were, and what was killed."""
    members: set[psutil.Process] = set()
    victims: list[str] = []
    while tally.kills < kills and victims[-1:] not in (["run"], ["all processes"]):
        victim, lines = random.choice(VICTIMS), random.randint(0, MOST_LINES)
        if not command.goes_on(lines=lines, seconds=random.uniform(0, MOST_SECONDS if lines else FIRST_MOMENTS)):
            break
        moment = command.moment
        members.update(command.family())
        if command.kill(victim):
            victims.append(victim)
            tally.moments[moment] += 1
            tally.victims[victim] += 1
    return list(members), victims


def make_image(path: Path) -> Path:
    """Write a small image of waves and noise."""
    y, x = np.mgrid[:200, :270]
    waves = np.stack([np.sin(x / 9 + y / 31), np.cos(y / 7), np.sin(x * y / 900)], axis=2)
    noise = np.random.default_rng(0).normal(0, 12, waves.shape)
    Image.fromarray(np.clip(128 + 90 * waves + noise, 0, 255).astype(np.uint8)).save(path)
    return path


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of every file in a folder, whatever its name."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


if __name__ == "__main__":
    main()
