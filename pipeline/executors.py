"""Where jobs run: in this process, or on Dask workers. The result of a job never depends on it."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

from pipeline.cluster import THREADS_A_WORKER, block_interrupts, quiet, start_cluster

Job = TypeVar("Job")

_IN_FLIGHT_A_WORKER = 3
_GROUP_SECONDS, _LARGEST_GROUP = 0.05, 32
_SECONDS_BETWEEN_MESSAGES = 0.001  # of the client to the scheduler; Dask's own 10 ms are what a phase would begin with

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_KEPT_BYTES, _LARGEST_KEPT = 1 << 30, 1 << 25
_JOBS_A_RELEASE = 16

_jobs_ended = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one job ended.

    Parameters
    ----------
    index
        Of the job.
    result
        What it returned.
    error
        What it raised instead.
    began, ended
        When it ran, seconds since 1970 by the clock of where it ran.
    """

    index: int
    result: Any = None
    error: Exception | None = None
    began: float = 0.0
    ended: float = 0.0


class Executor(Protocol):
    """Runs independent jobs; a context manager."""

    def __enter__(self) -> Self:
        """Start."""
        ...

    def __exit__(self, *details: object) -> None:
        """Stop, leaving no process behind."""
        ...

    def map(self, function: Callable[[Job], Any], jobs: Sequence[Job]) -> Generator[Outcome]:
        """Yield each job's outcome as it ends, in any order; closed before the last, begin no other."""
        ...


class SerialExecutor:
    """One job after another in this process, its kernels on `threads` threads."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def __enter__(self) -> Self:
        _use_threads(self._threads)
        return self

    def __exit__(self, *details: object) -> None:
        pass

    def map(self, function: Callable[[Job], Any], jobs: Sequence[Job]) -> Generator[Outcome]:
        """Yield each job's outcome, in order."""
        for index, job in enumerate(jobs):
            yield _attempt(function, job, index)


class DaskExecutor:
    """Jobs on Dask workers, each a process that does one job at a time.

    Parameters
    ----------
    workers
        Processes of a cluster of our own on this machine.
    scheduler
        Address of a running scheduler to use instead; its workers must see the same files.

    Notes
    -----
    Only a bounded number of jobs is handed out at a time and each future is released once it ends, so a lost worker
    costs the jobs that ran on it and a million jobs cost no memory. Jobs of milliseconds are handed out in groups.
    """

    def __init__(self, *, workers: int, scheduler: str | None = None) -> None:
        self._workers = workers
        self._scheduler = scheduler
        self._stack = contextlib.ExitStack()
        self._starting: Future[Any] | None = None

    def __enter__(self) -> Self:
        if self._scheduler is None:
            # Beside whatever comes before the first job: staging the image takes no worker.
            thread = ThreadPoolExecutor(1, thread_name_prefix="start-workers", initializer=block_interrupts)
            self._starting = thread.submit(self._start)
            thread.shutdown(wait=False)
        else:
            self._starting = Future()
            self._starting.set_result(self._connect(self._scheduler))
        return self

    def __exit__(self, *details: object) -> None:
        assert self._starting is not None
        wait([self._starting])  # its error, if any, was for those who had jobs
        self._stack.close()

    def _start(self) -> Any:
        """Return a client of a cluster of our own."""
        return self._connect(self._stack.enter_context(start_cluster(self._workers)))

    def _connect(self, address: Any) -> Any:
        from distributed import Client

        quiet()
        client: Any = self._stack.enter_context(Client(address, set_as_default=False))
        client.scheduler_comm.interval = _SECONDS_BETWEEN_MESSAGES
        return client

    def map(self, function: Callable[[Job], Any], jobs: Sequence[Job]) -> Generator[Outcome]:
        """Yield each job's outcome as it ends."""
        from distributed import as_completed

        assert self._starting is not None
        client = self._starting.result()
        workers = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
        threads = min(THREADS_A_WORKER, self._workers) if self._scheduler is None else None
        groups = _Groups(len(jobs), workers=workers)
        running: dict[Any, list[int]] = {}
        completed = as_completed(loop=client.loop)

        def submit(count: int) -> None:
            for group in itertools.islice(groups, count):
                future = client.submit(_attempt_all, function, [jobs[i] for i in group], group, threads, pure=False)
                running[future] = group
                completed.add(future)

        submit(_IN_FLIGHT_A_WORKER * workers)
        try:
            for future in completed:
                group = running.pop(future)
                try:
                    outcomes = future.result()
                except Exception as error:  # its worker died, again and again
                    outcomes = groups.failed(group, error)
                future.release()
                groups.ended(outcomes)
                submit(1)
                yield from outcomes
        finally:
            client.cancel(list(running))


class _Groups:
    """Jobs put together to what a worker is given at a time: one, or several that are short.

    Handing out a job and taking its result back costs some milliseconds, more than a short one itself.

    Parameters
    ----------
    count
        Of the jobs.
    workers
        That share them.
    """

    def __init__(self, count: int, *, workers: int) -> None:
        self._next, self._count = 0, count
        self._workers = workers
        self._alone: deque[int] = deque()
        self._seconds, self._ended = 0.0, 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[int]:
        if self._alone:
            return [self._alone.popleft()]
        if self._next == self._count:
            raise StopIteration
        share = (self._count - self._next) // (_IN_FLIGHT_A_WORKER * self._workers)  # few left: none waits for others
        short = int(_GROUP_SECONDS * self._ended / self._seconds) if self._seconds else _LARGEST_GROUP
        size = max(1, min(short, share, self._ended, _LARGEST_GROUP))
        group = list(range(self._next, self._next + size))
        self._next += size
        return group

    def ended(self, outcomes: Sequence[Outcome]) -> None:
        """Learn from some jobs how long they take; after one that failed, begin again with single ones."""
        if any(outcome.error is not None for outcome in outcomes):
            self._seconds, self._ended = 0.0, 0
        else:
            self._seconds += sum(outcome.ended - outcome.began for outcome in outcomes)
            self._ended += len(outcomes)

    def failed(self, group: list[int], error: Exception) -> list[Outcome]:
        """Return what is known of a group that never came back; of several, each is tried by itself."""
        if len(group) == 1:
            return [Outcome(index=group[0], error=error)]
        self._alone.extend(group)
        return []


def _attempt_all(
    function: Callable[[Any], Any], jobs: Sequence[Any], indices: Sequence[int], threads: int | None
) -> list[Outcome]:
    if threads is not None:
        _use_threads(threads)
    return [_attempt(function, job, index) for job, index in zip(jobs, indices, strict=True)]


def _use_threads(count: int) -> None:
    """Let kernels of this process run on `count` threads, or all it has."""
    from numba import set_num_threads
    from numba.core import config

    set_num_threads(min(count, vars(config)["NUMBA_NUM_THREADS"]))  # its limit, set when it was imported


def _attempt(function: Callable[[Any], Any], job: Any, index: int) -> Outcome:
    keep_freed_memory()
    began = time.time()
    try:
        return Outcome(index=index, result=function(job), began=began, ended=time.time())
    except Exception as error:
        return Outcome(index=index, error=error, began=began, ended=time.time())
    finally:
        if next(_jobs_ended) % _JOBS_A_RELEASE == 0:
            release_memory()


def keep_freed_memory() -> None:
    """Let this process keep what it frees, where the C library can (glibc): a job frees and takes images in turn.

    Memory fresh from the system costs a fault a page; that was half the time of a fit, and a fifth still when it was
    given back after every job.
    """
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)


def release_memory() -> None:
    """Give freed memory back to the system, where the C library can (glibc), so that a long run stays flat."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
