"""An archive on a schedule, by a real Prefect server: a trigger tells what failed, the next one does only that."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import psutil
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-c", "from flows.cli import main; main()"]


class Server:
    """A Prefect server of its own, and what it says."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.environment = os.environ | {
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }

    def ask(self, path: str, values: dict[str, Any] | None = None) -> Any:
        data = None if values is None else json.dumps(values).encode()
        request = Request(self.api + path, data, {"Content-Type": "application/json"})
        with urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def run_deployment(self, name: str) -> dict[str, Any]:
        """Trigger a deployment, and return its run once that has ended."""
        deployment = self.ask(f"/deployments/name/{name}")
        run = self.ask(f"/deployments/{deployment['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}})
        return wait_for(lambda: self._ended(run["id"]), seconds=400)  # kernels may have to be compiled first

    def artifacts(self, run: dict[str, Any]) -> dict[str, Any]:
        """Return the data of a run's artifacts by key."""
        found = self.ask("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
        return {artifact["key"]: artifact["data"] for artifact in found}

    def task_states(self, run: dict[str, Any]) -> dict[str, str]:
        found = self.ask("/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
        return {each["name"].rsplit("-", 1)[0]: each["state_name"] for each in found}

    def _ended(self, identity: str) -> dict[str, Any] | None:
        run = self.ask(f"/flow_runs/{identity}")
        return run if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None


def wait_for(look: Any, *, seconds: float) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if found := look():
                return found
        time.sleep(0.5)
    raise AssertionError("it took too long")


@contextlib.contextmanager
def running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command until the end of the block, then interrupt it, and see that it leaves no process behind."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        yield process
    finally:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(signal.SIGINT)
        _, alive = psutil.wait_procs(family, timeout=30)
        for each in alive:
            each.kill()
        process.wait()
        assert not alive, log.read_text()[-2000:]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Six photos, of which one is cut off."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(6):
        pixels = load_sample_images().images[index % 2][40 * index : 40 * index + 90, 200:320]
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{index}.png")
    data = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(data[: len(data) // 2])
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "prefect")
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(server.port)]
    with running(command, server.environment, tmp_path / "server.log"):
        wait_for(lambda: server.ask("/health"), seconds=120)
        yield server


@pytest.mark.timeout(900)
def test_a_served_archive_fails_with_its_one_bad_image_and_then_does_only_that(archive, server, tmp_path):
    destination = tmp_path / "scenes"
    options = ["--cron", "0 3 * * *", "--timezone", "Europe/Berlin", "--preset", "draft", "--ratio", "8"]
    command = [*COMMAND, "schedule", str(archive), str(destination), *options, "--workers", "1"]
    with running(command, server.environment, tmp_path / "schedule.log"):
        name = "compress-archive/scenes"
        deployment = wait_for(lambda: server.ask(f"/deployments/name/{name}"), seconds=60)
        assert [each["schedule"]["cron"] for each in deployment["schedules"]] == ["0 3 * * *"]
        assert deployment["schedules"][0]["schedule"]["timezone"] == "Europe/Berlin"
        form = deployment["parameter_openapi_schema"]["properties"]
        assert form["preset"]["enum"] == ["draft", "standard", "best", "paper"]
        assert "folder of the scenes" in form["destination"]["description"].lower()

        first = server.run_deployment(name)
        assert first["state_type"] == "FAILED"
        assert "1 of 6 scenes failed" in first["state"]["message"]
        assert "3.png" in first["state"]["message"]
        assert len(list(destination.glob("*.zarr"))) == 5
        table = {row["scene"]: row for row in json.loads(server.artifacts(first)["archive-scenes"])}
        assert [row["state"] for row in table.values()].count("done") == 5
        assert table["3.png"]["state"] == "failed"
        assert "truncated or damaged" in table["3.png"]["message"]
        summary = server.artifacts(first)["archive-summary"]
        assert "truncated or damaged" in summary
        assert "0.png.after.jpg" in summary
        states = server.task_states(first)
        assert len(states) <= 6
        assert sum(state == "Completed" for state in states.values()) == 5
        report = json.loads((destination / "report.json").read_text())
        assert report["totals"]["states"] == {"done": 5, "failed": 1}

        shutil.copy(archive / "2.png", archive / "3.png")
        before = {path: path.stat().st_mtime_ns for path in destination.glob("*.zarr/zarr.json")}
        second = server.run_deployment(name)
        assert second["state_type"] == "COMPLETED", second["state"]
        assert list(server.task_states(second)) == ["3.png"]
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert (destination / "3.png.zarr").exists()


def test_a_schedule_without_a_server_or_without_sense_is_refused(archive, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment["PREFECT_HOME"] = str(tmp_path / "prefect")

    def refused(*options: str, **more: str) -> str:
        command = [*COMMAND, "schedule", str(archive), str(tmp_path / "scenes"), *options]
        done = subprocess.run(command, env=environment | more, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2, done.stderr
        return " ".join(done.stderr.split())

    assert "no Prefect server is configured: start one with" in refused("--cron", "0 3 * * *")
    address = {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
    assert "is no schedule" in refused("--cron", "at noon", **address)
    assert "is no schedule" in refused("--cron", "0 3 * * *", "--timezone", "Nowhere/City", **address)
    assert "at http://127.0.0.1:9/api does not answer" in refused("--cron", "0 3 * * *", **address)
    assert "preset 'fine' is unknown" in refused("--cron", "0 3 * * *", "--preset", "fine", **address)
