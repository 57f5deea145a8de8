"""Jobs are retried once, failures recorded and the rest carried on, here and on workers that may be killed."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.executors import DaskExecutor, Executor, Outcome, SerialExecutor, _Groups
from pipeline.jobs import Fallback, run_jobs
from smartsplat.errors import StageIncomplete, StorageFullError, StoreError


@dataclass(frozen=True, kw_only=True)
class Work:
    """One job: what it does the first times, in a folder where it leaves a mark each time it runs."""

    number: int
    folder: str
    fails: int = 0
    kills: int = 0

    def __str__(self) -> str:
        return f"work {self.number}"


def square(job: Work) -> int:
    marks = Path(job.folder)
    attempt = len(list(marks.glob(f"{job.number}-*")))
    (marks / f"{job.number}-{attempt}").touch()
    if attempt < job.kills:
        os.kill(os.getpid(), signal.SIGKILL)
    if attempt < job.fails:
        raise StoreError(f"attempt {attempt}\nfails")
    time.sleep(0.01 * (job.number % 3))  # so that they end in another order
    return job.number**2


def attempts(folder: Path, number: int) -> int:
    return len(list(folder.glob(f"{number}-*")))


def divide(number: int) -> float:
    return 1 / number


def fill_the_disk(number: int) -> int:
    if number == 1:
        raise StorageFullError("the disk is full")
    return number


def process_id(number: int) -> int:
    return os.getpid()


def variable_and_threads(_: int) -> tuple[str | None, int]:
    import numba

    return os.environ.get("SMARTSPLAT_TEST"), numba.get_num_threads()


def has_profiler(_: int) -> bool:
    from distributed import get_worker

    return "profile" in get_worker().periodic_callbacks


def thread_limit(number: int) -> tuple[str | None, str | None, int]:
    import numba

    return os.environ.get("OPENBLAS_NUM_THREADS"), os.environ.get("OMP_WAIT_POLICY"), numba.get_num_threads()


def pixels_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=5)


class Watcher:
    """Counts what it is told; also the record of failures."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.advanced = 0
        self.recorded: list[dict[str, str]] = []

    def start(self, stage: str, *, total: int, done: int) -> None:
        self.events.append(f"{stage} {done}/{total}")

    def advance(self, note: str = "", *, jobs: int = 1) -> None:
        self.advanced += jobs
        self.events += [note] if note else []

    def finish(self) -> None:
        self.events.append("finish")


def run(function, jobs, executor: Executor, watcher: Watcher | None = None, **options):
    watcher = watcher or Watcher()
    return run_jobs(
        function,
        jobs,
        executor=executor,
        progress=watcher,
        record_failures=watcher.recorded.append,
        stage="work",
        **options,
    )


def works(folder: Path, count: int, **special: dict[str, int]) -> list[Work]:
    return [Work(number=n, folder=str(folder), **special.get(f"n{n}", {})) for n in range(count)]


@pytest.fixture(scope="module", params=["serial", "dask"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with SerialExecutor(threads=2) if request.param == "serial" else DaskExecutor(workers=2) as started:
        yield started


# --- On any executor --------------------------------------------------------------------------------------------------


def test_results_come_in_the_order_of_the_jobs(executor: Executor, tmp_path: Path):
    watcher = Watcher()
    assert run(square, works(tmp_path, 20), executor, watcher) == [n**2 for n in range(20)]
    assert all(attempts(tmp_path, n) == 1 for n in range(20))
    assert (watcher.advanced, watcher.recorded) == (20, [{}])


def test_no_jobs_give_no_results(executor: Executor):
    assert run(square, [], executor) == []


def test_a_job_that_fails_once_is_done_again(executor: Executor, tmp_path: Path):
    watcher = Watcher()
    results = run(square, works(tmp_path, 6, n2={"fails": 1}, n5={"fails": 1}), executor, watcher)
    assert results == [n**2 for n in range(6)]
    assert [attempts(tmp_path, n) for n in range(6)] == [1, 1, 2, 1, 1, 2]
    assert (watcher.advanced, watcher.recorded) == (6, [{}])


def test_jobs_that_fail_twice_are_recorded_and_the_others_carried_on(executor: Executor, tmp_path: Path):
    watcher = Watcher()
    with pytest.raises(StageIncomplete) as caught:
        run(square, works(tmp_path, 8, n3={"fails": 9}, n6={"fails": 9}), executor, watcher)
    assert [attempts(tmp_path, n) for n in range(8)] == [1, 1, 1, 2, 1, 1, 2, 1]
    assert watcher.recorded == [{"work 3": "attempt 1 fails", "work 6": "attempt 1 fails"}]
    assert watcher.advanced == 6
    assert watcher.events[-1] == "finish"
    message = str(caught.value)
    assert "work: 2 of 8 jobs failed" in message
    assert "First: work 3: attempt 1 fails" in message
    assert "run the same command again" in message


def test_an_unexpected_error_is_named_with_its_kind(executor: Executor):
    with pytest.raises(StageIncomplete, match="First: 0: ZeroDivisionError: "):
        run(divide, [1, 0, 2], executor)


def test_a_full_disk_ends_the_stage_at_once(executor: Executor):
    watcher = Watcher()
    with pytest.raises(StorageFullError, match="the disk is full"):
        run(fill_the_disk, list(range(100)), executor, watcher)
    assert watcher.advanced < 100
    assert watcher.recorded == []
    assert watcher.events[-1] == "finish"
    assert run(process_id, [0], executor), "the executor is fit for the next stage"


def test_progress_starts_from_what_was_done_and_shows_notes(executor: Executor, tmp_path: Path):
    watcher = Watcher()
    run(square, works(tmp_path, 3), executor, watcher, done=7, note=lambda result: f"result {result}")
    assert watcher.events[0] == "work 7/10"
    assert sorted(watcher.events[1:-1]) == ["result 0", "result 1", "result 4"]


def test_arrays_are_the_same_wherever_they_are_made(executor: Executor):
    for seed, found in enumerate(run(pixels_of, list(range(10)), executor)):
        np.testing.assert_array_equal(found, pixels_of(seed))


@pytest.mark.parametrize("most", [0, 3])
def test_more_failures_than_allowed_stop_the_stage(executor: Executor, tmp_path: Path, most: int):
    watcher, failing = Watcher(), {f"n{n}": {"fails": 9} for n in range(4, 60)}
    with pytest.raises(StageIncomplete, match=rf"stopped at {most + 1} failed jobs with \d+ not begun"):
        run(square, works(tmp_path, 60, **failing), executor, watcher, most=most)
    tried = [n for n in range(60) if attempts(tmp_path, n)]
    assert len(tried) < 30
    assert watcher.advanced <= 4
    assert len(watcher.recorded[0]) == most + 1


def test_as_many_failures_as_allowed_stop_nothing(executor: Executor, tmp_path: Path):
    failing = {f"n{n}": {"fails": 9} for n in (1, 5)}
    with pytest.raises(StageIncomplete, match="2 of 8 jobs failed"):
        run(square, works(tmp_path, 8, **failing), executor, most=2)
    assert all(attempts(tmp_path, n) for n in range(8))


def test_failures_that_pass_count_for_nothing(executor: Executor, tmp_path: Path):
    passing = {f"n{n}": {"fails": 1} for n in range(12)}
    assert run(square, works(tmp_path, 12, **passing), executor, most=0) == [n**2 for n in range(12)]


def test_a_job_that_fails_is_replaced_by_a_simpler_one_which_is_on_record_before_it_is_done(
    executor: Executor, tmp_path: Path
):
    events: list[object] = []

    def simpler(job: Work) -> Work:
        events.append(job.number)
        return Work(number=job.number + 100 * (job.number == 2), folder=job.folder, fails=job.fails)

    failing = {f"n{n}": {"fails": 3} for n in (2, 4)}  # the simpler one for 4 fails too
    fallback = Fallback(instead=simpler, record=events.append)
    (tmp_path / "102-0").touch(), (tmp_path / "102-1").touch(), (tmp_path / "102-2").touch()
    watcher = Watcher()
    with pytest.raises(StageIncomplete, match=r"1 of 6 jobs failed.*First: work 4"):
        run(square, works(tmp_path, 6, **failing), executor, watcher, fallback=fallback)
    both = {"work 2": "attempt 1 fails", "work 4": "attempt 1 fails"}
    assert events == [both, 2, 4, {"work 2": "attempt 1 fails"}]
    assert watcher.recorded == [{"work 4": "attempt 2 fails"}]
    assert watcher.advanced == 5


# --- Serial -----------------------------------------------------------------------------------------------------------


def test_serial_jobs_run_in_this_process_one_after_another():
    with SerialExecutor(threads=1) as executor:
        outcomes = executor.map(process_id, [5, 6, 7])
        first = next(outcomes)
        assert (first.index, first.result, first.error) == (0, os.getpid(), None)
        assert first.began <= first.ended
        assert [outcome.index for outcome in outcomes] == [1, 2]


def test_serial_executor_uses_no_more_threads_than_asked():
    import numba

    before = numba.get_num_threads()
    try:
        with SerialExecutor(threads=1):
            assert numba.get_num_threads() == 1
        with SerialExecutor(threads=10_000):
            assert numba.get_num_threads() == numba.config.NUMBA_NUM_THREADS
    finally:
        numba.set_num_threads(before)


# --- Dask -------------------------------------------------------------------------------------------------------------


def gone(pids: set[int], *, seconds: float = 5) -> bool:
    """Return whether all processes end within some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
            return True
        time.sleep(0.05)
    return False


def test_workers_are_other_processes_of_two_threads_that_do_not_spin_and_gone_afterwards():
    with DaskExecutor(workers=2) as executor:
        pids = set(run(process_id, list(range(40)), executor))
        limits = set(run(thread_limit, [0, 1, 2], executor))
        children = {child.pid for child in psutil.Process().children(recursive=True)}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert limits == {("1", "PASSIVE", 2)}
    assert pids <= children
    assert gone(pids)


def test_workers_see_the_variables_of_now_and_a_single_one_has_one_thread(monkeypatch: pytest.MonkeyPatch):
    """What they are forked from was started with the first cluster, maybe long ago."""
    for value in ("first", "second"):
        monkeypatch.setenv("SMARTSPLAT_TEST", value)
        with DaskExecutor(workers=1) as executor:
            assert run(variable_and_threads, [0], executor) == [(value, 1)]


def test_workers_are_not_profiled():
    """Dask's profile of a worker grows with each stack that it has not seen: 100 MB in a run of 20,000 jobs."""
    with DaskExecutor(workers=1) as executor:
        assert run(has_profiler, [0], executor) == [False]


def test_a_cluster_of_our_own_listens_on_this_machine_alone():
    with DaskExecutor(workers=1) as first, DaskExecutor(workers=1) as second:
        assert run(process_id, [0], first) != run(process_id, [0], second)
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        connections = [connection for process in processes for connection in process.net_connections()]
    hosts = {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}
    assert hosts == {"127.0.0.1"}


def test_workers_are_gone_after_an_error():
    pids: set[int] = set()

    def fails_in_the_second_stage() -> None:
        with DaskExecutor(workers=1) as executor:
            pids.update(run(process_id, [0], executor))
            run(divide, [0], executor)

    with pytest.raises(StageIncomplete):
        fails_in_the_second_stage()
    assert pids
    assert gone(pids)


def test_a_killed_worker_costs_only_what_ran_on_it(tmp_path: Path):
    watcher = Watcher()
    with DaskExecutor(workers=2) as executor:
        results = run(square, works(tmp_path, 12, n4={"kills": 1}), executor, watcher)
    assert results == [n**2 for n in range(12)]
    assert attempts(tmp_path, 4) == 2
    assert sum(attempts(tmp_path, n) for n in range(12)) <= 12 + 3  # at most what one worker held
    assert watcher.recorded == [{}]


def test_jobs_that_are_short_travel_together_and_long_ones_alone(tmp_path: Path):
    with DaskExecutor(workers=2) as executor:
        outcomes = list(executor.map(math.sqrt, list(range(500))))
        assert [outcome.result for outcome in sorted(outcomes, key=lambda each: each.index)] == [
            math.sqrt(n) for n in range(500)
        ]
        tasks: list[int] = []
        groups = _Groups(500, workers=2)
        for group in groups:
            tasks.append(len(group))
            groups.ended([Outcome(index=index, result=0, began=0.0, ended=0.001) for index in group])
        assert sum(tasks) == 500
        assert tasks[0] == 1
        assert 20 <= max(tasks) <= 32
        assert tasks[-1] == 1  # towards the end no worker waits for another's
    alone = _Groups(20, workers=2)
    for group in alone:
        assert len(group) == 1
        alone.ended([Outcome(index=group[0], result=0, began=0.0, ended=0.2)])


def test_a_group_whose_worker_dies_is_tried_one_by_one():
    groups, seen, lost = _Groups(100, workers=1), list[int](), 0
    for group in groups:
        if 40 in group:
            outcomes = groups.failed(group, RuntimeError("killed"))
            lost += len(outcomes)
        else:
            outcomes = [Outcome(index=index, result=0, began=0.0, ended=0.001) for index in group]
        groups.ended(outcomes)
        seen += [outcome.index for outcome in outcomes]
    assert sorted(seen) == list(range(100))
    assert lost == 1


def test_a_scheduler_that_runs_already_is_used_and_left_running(tmp_path: Path):
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster:
        address = cluster.scheduler_address
        for _ in range(2):
            with DaskExecutor(workers=5, scheduler=address) as executor:
                pids = set(run(process_id, list(range(6)), executor))
                assert pids == {worker.pid for worker in cluster.workers.values()}
        assert not gone(pids, seconds=0.5)
    assert gone(pids)
