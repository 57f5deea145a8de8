"""Where jobs run: in this process, or on Dask workers. The result of a job never depends on it."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

Job = TypeVar("Job")

_IN_FLIGHT_A_WORKER = 3
_GROUP_SECONDS, _LARGEST_GROUP = 0.05, 32
# Set for a moment in this process too, where numba must not see a number of threads that is not its own.
_ENVIRONMENT_BEFORE_START = {
    **dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "MALLOC_ARENA_MAX": "2",  # else each of a worker's helper threads keeps freed images of its own
}

# Workers take it over. Their profiler looks at them every 10 ms, and its memory grows with every call that it sees.
_WITHOUT_PROFILER = {"distributed.worker.profile.enabled": False}

# Two threads a worker: towards the end of a phase some workers have nothing to do. Threads that wait must not spin, as
# while all workers are busy they share the cores.
_THREADS_A_WORKER = 2
_WAIT_POLICY = {"OMP_WAIT_POLICY": "PASSIVE"}

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
        from numba import set_num_threads
        from numba.core import config

        set_num_threads(min(self._threads, vars(config)["NUMBA_NUM_THREADS"]))  # its limit, set when it was imported
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
            thread = ThreadPoolExecutor(1, thread_name_prefix="start-workers", initializer=_block_interrupts)
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
        from dask.config import set as set_dask_config
        from distributed import LocalCluster

        _quiet()
        # Set before a worker starts, as its C library reads the environment once.
        environment = {"distributed.nanny.pre-spawn-environ": _ENVIRONMENT_BEFORE_START, **_WITHOUT_PROFILER}
        with set_dask_config(environment):
            cluster = LocalCluster(
                n_workers=self._workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",  # "" would listen on all interfaces, None on port 8787
                scheduler_kwargs={"dashboard": False},
                memory_limit=None,
                silence_logs=logging.ERROR,
                env={"NUMBA_NUM_THREADS": str(min(_THREADS_A_WORKER, self._workers)), **_WAIT_POLICY},
            )
        return self._connect(self._stack.enter_context(cluster))

    def _connect(self, address: Any) -> Any:
        from distributed import Client

        _quiet()
        return self._stack.enter_context(Client(address, set_as_default=False))

    def map(self, function: Callable[[Job], Any], jobs: Sequence[Job]) -> Generator[Outcome]:
        """Yield each job's outcome as it ends."""
        from distributed import as_completed

        assert self._starting is not None
        client = self._starting.result()
        workers = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
        groups = _Groups(len(jobs), workers=workers)
        running: dict[Any, list[int]] = {}
        completed = as_completed(loop=client.loop)

        def submit(count: int) -> None:
            for group in itertools.islice(groups, count):
                future = client.submit(_attempt_all, function, [jobs[index] for index in group], group, pure=False)
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


def _quiet() -> None:
    """Let Dask log errors alone; it sets its own levels when it is imported."""
    logging.getLogger("distributed").setLevel(logging.ERROR)


def _block_interrupts() -> None:
    """Let processes that this thread starts not see Ctrl-C: a terminal sends it to them too, and we stop them."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # threads and processes inherit it


def _attempt_all(function: Callable[[Any], Any], jobs: Sequence[Any], indices: Sequence[int]) -> list[Outcome]:
    return [_attempt(function, job, index) for job, index in zip(jobs, indices, strict=True)]


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
