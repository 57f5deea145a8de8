"""Workers of our own on this machine: processes that start within a moment, and look after themselves."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
from contextlib import suppress
from typing import Any

# Two threads a worker: towards the end of a phase some workers have nothing to do. Threads that wait must not spin, as
# while all workers are busy they share the cores.
THREADS_A_WORKER = 2
ENVIRONMENT = {
    **dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "NUMBA_NUM_THREADS": str(THREADS_A_WORKER),
    "OMP_WAIT_POLICY": "PASSIVE",
}
_ARENAS, _M_ARENA_MAX = 2, -8  # more, and each of a worker's helper threads keeps freed images of its own

# Workers take it over. Their profiler looks at them every 10 ms, and its memory grows with every call that it sees.
_WITHOUT_PROFILER = {"distributed.worker.profile.enabled": False}

_FORKS = sys.platform == "linux"  # elsewhere system libraries do not all survive a fork


def start_cluster(workers: int) -> Any:
    """Return a `LocalCluster` of processes that do one job at a time.

    Where it can be, they are forked from a process that has imported all they need and done nothing else: the first
    cluster costs the time of those imports once instead of once a worker, any other of this process next to nothing.
    """
    from dask.config import set as set_dask_config
    from distributed import LocalCluster
    from distributed.utils import get_mp_context

    quiet()
    settings: dict[str, Any] = {
        **_WITHOUT_PROFILER,
        # Without a fork, what a library reads once when it is loaded has to be there before a worker is.
        "distributed.nanny.pre-spawn-environ": {"MALLOC_ARENA_MAX": str(_ARENAS)},
        "distributed.worker.multiprocessing-method": "forkserver" if _FORKS else "spawn",
    }
    with set_dask_config(settings):
        if _FORKS:
            get_mp_context()  # has Dask choose modules to be imported beforehand: once, so not after us
            multiprocessing.get_context("forkserver").set_forkserver_preload(["pipeline.preloaded"])
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # "" would listen on all interfaces, None on port 8787
            scheduler_kwargs={"dashboard": False},
            memory_limit=None,
            silence_logs=logging.ERROR,
            # What they were forked from may be older than a variable of this process.
            env={**os.environ, **ENVIRONMENT},
        )


def quiet() -> None:
    """Let Dask log errors alone; it sets its own levels when it is imported."""
    logging.getLogger("distributed").setLevel(logging.ERROR)


def block_interrupts() -> None:
    """Let processes that this thread starts not see Ctrl-C: a terminal sends it to them too, and we stop them."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # threads and processes inherit it


def limit_arenas() -> None:
    """Do what MALLOC_ARENA_MAX does in a process that runs already, where the C library can (glibc)."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)
