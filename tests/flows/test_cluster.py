"""A real Dask cluster: a scheduler and three workers, each a process that was started by hand."""

from __future__ import annotations

import collections
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

pytestmark = pytest.mark.slow

DASK = [sys.executable, "-m", "dask"]
WORKERS = 3

# Loaded by each worker: every job that begins leaves a line, so that those which began twice can be counted.
COUNTING = """
import hashlib, os, pickle
import pipeline.executors as executors

attempt = vars(executors).setdefault("counted_attempt", executors._attempt)  # Dask may load this twice

def counted(function, job, index):
    with open({file!r}, "a") as lines:
        identity = hashlib.sha256(pickle.dumps(job)).hexdigest()
        lines.write(f"{{os.getpid()}}|{{function.__name__}} {{job}} {{identity}}\\n")
    return attempt(function, job, index)

executors._attempt = counted
"""


class Cluster:
    """Where it is, its workers' processes, and the jobs they began."""

    def __init__(self, address: str, jobs: Path, processes: list[subprocess.Popen[bytes]]) -> None:
        self.address, self._jobs, self._processes = address, jobs, processes

    @property
    def workers(self) -> list[int]:
        return [process.pid for process in self._processes[1:]]

    @property
    def begun(self) -> list[tuple[int, str]]:
        """The process and the name of each job, in order."""
        lines = self._jobs.read_text().splitlines() if self._jobs.exists() else []
        return [(int(line.split("|")[0]), line.split("|", 1)[1]) for line in lines]


def wait_for(look: Any, *, seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.02)
    raise AssertionError("it took too long")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    preload, jobs, address = tmp_path / "counting.py", tmp_path / "jobs", tmp_path / "scheduler.json"
    preload.write_text(COUNTING.format(file=str(jobs)))
    environment = os.environ | {"NUMBA_NUM_THREADS": "1"}
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> None:
        command = [*DASK, *arguments, "--scheduler-file", str(address)]
        with (tmp_path / f"{len(processes)}.log").open("wb") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))

    try:
        start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        wait_for(address.exists)
        for _ in range(WORKERS):
            # Without a nanny, so that the one that is killed stays dead.
            start("worker", "--no-nanny", "--nthreads", "1", "--no-dashboard", "--preload", str(preload))
        from distributed import Client

        with Client(scheduler_file=str(address), set_as_default=False) as client:
            client.wait_for_workers(WORKERS, timeout=60)
            found = client.scheduler.address  # type: ignore[union-attr]
        yield Cluster(found, jobs, processes)
    finally:
        for process in processes:
            process.terminate()
        psutil.wait_procs([psutil.Process(process.pid) for process in processes if process.poll() is None], timeout=10)
        for process in processes:
            process.kill()
            process.wait()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_worker_killed_in_a_stage_costs_what_it_was_at_and_changes_no_byte(cluster, smartsplat, tmp_path):
    image = tmp_path / "image.png"
    Image.fromarray(np.ascontiguousarray(load_sample_images().images[0][:300, :400])).save(image)
    options = ["--preset", "draft", "--tile", "64", "--ratio", "20"]
    scene = tmp_path / "cluster.zarr"
    command = [sys.executable, "-c", "from flows.cli import main; main()", "compress", str(image), str(scene), *options]
    with subprocess.Popen([*command, "--scheduler", cluster.address], stderr=subprocess.PIPE, text=True) as run:
        victim = cluster.workers[1]

        def is_fitting() -> bool:
            return sum(pid == victim and name.startswith("fit_one") for pid, name in cluster.begun) >= 3

        wait_for(is_fitting, seconds=100)
        os.kill(victim, signal.SIGKILL)
        _, said = run.communicate(timeout=100)
    assert run.returncode == 0, said

    begun = cluster.begun
    assert {pid for pid, _ in begun} == set(cluster.workers)
    times = collections.Counter(name for _, name in begun)
    again = [name for name, count in times.items() if count > 1]
    last = [name for pid, name in begun if pid == victim][-len(again) :] if again else []
    assert sorted(again) == sorted(last), "only what the killed worker was at began twice"
    assert len(again) <= 32, "what is handed out together"
    assert all(count <= 2 for count in times.values())

    serial = tmp_path / "serial.zarr"
    assert smartsplat("compress", image, serial, *options, "--executor", "serial").returncode == 0
    assert contents(scene) == contents(serial)
    assert not list(scene.rglob("*.partial"))
    shutil.rmtree(scene)
