"""Run the jobs of a stage: each at most twice, failures recorded, the rest carried on."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pipeline.executors import Executor, Outcome
from pipeline.progress import Progress
from smartsplat.errors import ConfigError, SmartsplatError, StageIncomplete, StorageFullError

Job = TypeVar("Job")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailurePolicy:
    """What becomes of a run whose jobs fail; what comes out if none does is always the same.

    Parameters
    ----------
    most
        Failed jobs that a stage may have before it stops at once; None = all others are done first, however many fail.
    fallback
        Whether a tile whose fit fails gets the best colors for the Gaussians it had, and the run goes on; the scene
        says which tiles. Else the stage ends there, to be resumed.
    fit_seconds
        Longest that one visit to a tile may take; None = no limit.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    most: int | None = None
    fallback: bool = False
    fit_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.most is not None and self.most < 0:
            raise ConfigError(f"at most {self.most} failures: the number must not be negative")
        if self.fit_seconds is not None and not 0 < self.fit_seconds < math.inf:
            raise ConfigError(f"fit limit {self.fit_seconds} s: it must be positive")


DEFAULT_POLICY = FailurePolicy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback(Generic[Job]):
    """What to do for jobs that fail.

    Parameters
    ----------
    instead
        Returns a simpler job for one that failed.
    record
        Told which of the stage's jobs are done that way, and why the others of them failed; replaces what it was told.
    """

    instead: Callable[[Job], Job]
    record: Callable[[dict[str, str]], None]


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
    most: int | None = None,
    fallback: Fallback[Job] | None = None,
    hint: str = "",
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
    most
        Failed jobs after which no other is begun; None = no limit.
    fallback
        What to do for a job that failed on every attempt; None = nothing.
    hint
        Another way out for whom trying again does not help, said with the error.

    Raises
    ------
    StageIncomplete
        If jobs failed on every attempt; the others are done and stay done.
    StorageFullError
        If the disk is full: at once, since every other job would fail too.
    """
    results: list[Any] = [None] * len(jobs)
    failures: dict[int, Exception] = {}

    def attempt(work: Mapping[int, Job], *, most: int | None) -> list[int]:
        """Do some jobs, by their index; return those that were not begun."""
        left = dict(work)
        outcomes = executor.map(function, list(work.values()))
        indices = list(work)
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                index = indices[outcome.index]
                del left[index]
                if outcome.error is None:
                    results[index] = outcome.result
                    failures.pop(index, None)
                    progress.advance(note(outcome.result) if note else "")
                else:
                    failures[index] = _failure(outcome, stage=stage, job=jobs[index])
                    if most is not None and len(failures) > most:
                        break
        return list(left)

    progress.start(stage, total=len(jobs) + done, done=done)
    waiting = list(range(len(jobs)))
    try:
        while waiting:
            # A limit that is reached is first tried again on what has failed: that may have passed.
            given_up = set(failures)
            waiting = attempt({index: jobs[index] for index in waiting}, most=most)
            if failures.keys() - given_up:
                attempt({index: jobs[index] for index in sorted(failures.keys() - given_up)}, most=None)
            if most is not None and len(failures) > most:
                break
        if fallback is not None and (most is None or len(failures) <= most):
            reasons = {str(jobs[index]): _one_line(error) for index, error in failures.items()}
            fallback.record(reasons)  # before the first of them is done: a kill shall not hide it
            attempt({index: fallback.instead(jobs[index]) for index in sorted(failures)}, most=None)
            fallback.record({name: reasons[name] for name in reasons.keys() - {str(jobs[index]) for index in failures}})
    finally:
        progress.finish()
    record_failures({str(jobs[index]): _one_line(error) for index, error in failures.items()})
    if failures:
        first = min(failures)
        stopped = f"stopped at {len(failures)} failed jobs with {len(waiting)} not begun" if waiting else ""
        counted = f"{len(failures)} of {len(jobs)} jobs failed, the others are kept"
        raise StageIncomplete(
            f"{stage}: {stopped or counted}; run the same command again to retry only those{hint}. "
            f"First: {jobs[first]}: {_one_line(failures[first])}"
        )
    return results


def _failure(outcome: Outcome, *, stage: str, job: Any) -> Exception:
    assert outcome.error is not None
    if isinstance(outcome.error, StorageFullError):
        raise outcome.error
    where = {"stage": stage, "tile": str(job)}
    logger.warning("%s, %s failed: %s", stage, job, _one_line(outcome.error), extra=where)
    return outcome.error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, SmartsplatError) else f"{type(error).__name__}: {text}"
