"""One scene compressed in a process of its own, so that whatever becomes of it, an archive goes on.

The two talk in lines of JSON. The request is the first line of the child's standard input; when that ends, the parent
is gone, and the child stops as it does after Ctrl-C. Its standard output says how far it is, and at last what came of
it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from flows.logs import set_up_logs
from smartsplat.errors import SmartsplatError

_STOPS, _SECONDS_BETWEEN_STOPS = 3, 10.0  # a compiler's callback may swallow an interrupt

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneRequest:
    """What is to be done, as plain values.

    Parameters
    ----------
    source, scene, root
        Paths of the image, the scene and the folder of the archive's scenes.
    config, resources, policy
        See `SceneConfig.to_dict`; fields of `Resources` and `FailurePolicy`.
    flow
        Whether to run it as a Prefect flow.
    log_level, log_json
        See `flows.logs.set_up_logs`.
    """

    source: str
    scene: str
    root: str
    config: dict[str, Any]
    resources: dict[str, Any]
    policy: dict[str, Any]
    flow: bool = False
    log_level: str = "info"
    log_json: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneResult:
    """What came of it.

    Parameters
    ----------
    report
        See `SceneReport.to_dict`; None if it failed.
    error, message
        Name of the error's class and what it says.
    """

    report: dict[str, Any] | None = None
    error: str | None = None
    message: str | None = None


class SceneProcess:
    """A child that compresses a scene.

    Parameters
    ----------
    request
        What to do.
    share
        Told how much of the work is done, from 0 to 1, in the thread that calls `run`.
    """

    def __init__(self, request: SceneRequest, *, share: Callable[[float], None]) -> None:
        self._request, self._share = request, share
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False

    def run(self) -> SceneResult:
        """Run it to its end."""
        with subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the parent, which then stops it
        ) as process:
            self._process = process
            if self._stopped:
                self.stop()
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it has died, which is said below
                process.stdin.write(json.dumps(dataclasses.asdict(self._request)) + "\n")
                process.stdin.flush()
            result = self._listen(process.stdout)
            process.wait()
        return result or SceneResult(error="ProcessDied", message=_death(process.returncode))

    def stop(self) -> None:
        """Have it stop, from another thread: soon, and so that the scene can be resumed."""
        self._stopped = True
        if self._process is not None:
            threading.Thread(target=_stop, args=(self._process,), daemon=True).start()

    def _listen(self, lines: IO[str]) -> SceneResult | None:
        result = None
        for line in lines:
            values = json.loads(line)
            if "share" in values:
                self._share(values["share"])
            else:
                result = SceneResult(**values)
        return result


def _stop(process: subprocess.Popen[str]) -> None:
    """Interrupt a process until it ends, and kill it if it does not."""
    for _ in range(_STOPS):
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_SECONDS_BETWEEN_STOPS)
            return
    process.kill()


def _death(code: int) -> str:
    if code < 0:
        hint = "; the system kills what takes too much memory: use --memory" if -code == signal.SIGKILL else ""
        return f"its process was killed by {signal.Signals(-code).name}{hint}"
    return f"its process ended with {code}"


# --- In the child -----------------------------------------------------------------------------------------------------


class _ShareProgress:
    """Tells the parent how far the whole run is."""

    def start(self, stage: str, *, total: int, done: int) -> None:
        """Do nothing."""

    def advance(self, note: str = "", *, jobs: int = 1) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def overall(self, share: float, *, seconds_left: float | None) -> None:  # noqa: ARG002 (of this scene alone)
        """Say it."""
        _say({"share": share})


def main() -> None:
    """Do what the first line of standard input asks for."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    request = SceneRequest(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_stop_without_parent, daemon=True).start()
    set_up_logs(request.log_level, as_json=request.log_json, scene=request.scene)
    try:
        result = SceneResult(report=_compress(request))
    except KeyboardInterrupt:
        result = SceneResult(error="Interrupted", message="interrupted; run the same command again to resume")
    except SmartsplatError as error:
        result = SceneResult(error=type(error).__name__, message=" ".join(str(error).split()))
    except Exception as error:
        logger.exception("%s", request.source)
        result = SceneResult(error=type(error).__name__, message=" ".join(str(error).split()))
    _say(dataclasses.asdict(result))


def _compress(request: SceneRequest) -> dict[str, Any]:
    from flows.thumbnails import write_thumbnails
    from pipeline.compress import compress
    from pipeline.jobs import FailurePolicy
    from pipeline.plan import Resources
    from smartsplat.config import SceneConfig

    source, scene = request.source, Path(request.scene)
    config, resources = SceneConfig.from_dict(request.config), Resources(**request.resources)
    policy = FailurePolicy(**request.policy)
    if request.flow:
        from flows.compress import run_flow

        report = run_flow(source, scene, config=config, resources=resources, policy=policy, keep_work=False)
    else:
        progress = _ShareProgress()
        report = compress(source, scene, config=config, resources=resources, policy=policy, progress=progress).to_dict()
    write_thumbnails(source, scene, root=Path(request.root))
    return report


def _say(values: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more: standard input ends too
        print(json.dumps(values, allow_nan=False), file=_parent, flush=True)


def _stop_without_parent() -> None:
    """Stop this process once its standard input ends."""
    while os.read(0, 4096):  # not by way of `sys.stdin`, whose lock would be held when the interpreter ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    # What else is printed must not mix with what the parent reads.
    _parent = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    main()
