"""Run the jobs of a stage: each at most twice, failures recorded, the rest carried on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pipeline.executors import Executor, Outcome
from pipeline.progress import Progress
from smartsplat.errors import SmartsplatError, StageIncomplete, StorageFullError

Job = TypeVar("Job")

ATTEMPTS = 2

logger = logging.getLogger(__name__)


def run_jobs(
    function: Callable[[Job], Any],
    jobs: Sequence[Job],
    *,
    executor: Executor,
    progress: Progress,
    record_failures: Callable[[dict[str, str]], None],
    stage: str,
    done: int = 0,
    note: Callable[[Any], str] | None = None,
) -> list[Any]:
    """Return every job's result, in the order of `jobs`.

    Parameters
    ----------
    function
        Runs one job; top level, as workers import it.
    jobs
        Independent of each other; ``str(job)`` names one.
    executor, progress
        Where they run, and who watches.
    record_failures
        Told which jobs failed and why, also if none did.
    stage
        Name, for progress and errors.
    done
        Jobs of the stage that an earlier run finished.
    note
        A word about a result, shown with the progress.

    Raises
    ------
    StageIncomplete
        If jobs failed on every attempt; the others are done and stay done.
    StorageFullError
        If the disk is full: at once, since every other job would fail too.
    """
    results: list[Any] = [None] * len(jobs)
    failures: dict[int, Exception] = {}
    progress.start(stage, total=len(jobs) + done, done=done)
    try:
        pending = list(range(len(jobs)))
        for _ in range(ATTEMPTS):
            failures = {}
            for outcome in executor.map(function, [jobs[index] for index in pending]):
                index = pending[outcome.index]
                if outcome.error is None:
                    results[index] = outcome.result
                    progress.advance(note(outcome.result) if note else "")
                else:
                    failures[index] = _failure(outcome, stage=stage, job=jobs[index])
            pending = sorted(failures)
            if not pending:
                break
    finally:
        progress.finish()
    record_failures({str(jobs[index]): _one_line(error) for index, error in failures.items()})
    if failures:
        first = min(failures)
        raise StageIncomplete(
            f"{stage}: {len(failures)} of {len(jobs)} jobs failed, the others are kept; run the same command again to "
            f"retry only those. First: {jobs[first]}: {_one_line(failures[first])}"
        )
    return results


def _failure(outcome: Outcome, *, stage: str, job: Any) -> Exception:
    assert outcome.error is not None
    if isinstance(outcome.error, StorageFullError):
        raise outcome.error
    logger.warning("%s, %s failed: %s", stage, job, _one_line(outcome.error))
    return outcome.error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, SmartsplatError) else f"{type(error).__name__}: {text}"
