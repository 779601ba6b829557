"""Run independent tasks in parallel: in worker processes or on a Ray cluster."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from fl_sim.engines.fork_server import fork_server
from fl_sim.engines.grids import start_ray
from fl_sim.engines.interrupts import Interrupted, WorkerLostError, end_workers
from fl_sim.engines.process import set_up_process
from fl_sim.storage.logs import collected, replay
from fl_sim.study.settings import EngineSettings

Task = TypeVar("Task")
Result = TypeVar("Result")

log = logging.getLogger("fl_sim.server")


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    engine: EngineSettings,
    device: str = "cpu",
) -> Iterator[tuple[Task, Result]]:
    """Run the tasks, and yield each with its result once it is done.

    Results must not depend on where a task runs: a task carries all its inputs, the seed too.
    Each process is set up by `set_up_process`.

    Parameters
    ----------
    function : callable
        Maps a task to its result; a function of an importable module.
    tasks : sequence
        Pickled, unless they run in this process.
    engine : EngineSettings
        ``workers`` processes (0: one per core) on this machine, or the cluster of ``ray``.
    device : str
        What tasks run on. If not ``cpu``, one local process runs all tasks; a cluster gives a GPU
        to each.
    """
    workers = min(engine.workers or _cores(), len(tasks)) if device == "cpu" else 1
    if engine.engine == "ray" and tasks:
        yield from _on_ray(function, tasks, engine.ray_address, int(device != "cpu"))
    elif workers > 1:
        yield from _over_processes(function, tasks, workers)
    else:
        set_up_process()
        for task in tasks:
            yield task, function(task)


def _over_processes(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[tuple[Task, Result]]:
    """Run the tasks in worker processes; if a worker is killed, continue with one worker less.

    Raises
    ------
    WorkerLostError
        If a worker is killed although it is the only one.
    """
    left = dict(enumerate(tasks))
    while left:
        try:
            for number, result in _in_pool(function, left, workers):
                yield left.pop(number), result
        except BrokenProcessPool as error:
            if workers == 1:
                raise WorkerLostError(f"{_KILLED} although it was the only one") from error
            workers -= 1
            log.warning("%s; continuing %d task(s) with %d worker(s)", _KILLED, len(left), workers)


_KILLED = "a worker process was killed, perhaps because memory ran out"


def _in_pool(
    function: Callable[[Task], Result], tasks: Mapping[int, Task], workers: int
) -> Iterator[tuple[int, Result]]:
    """Yield the number of each task with its result as it is done."""
    with ProcessPoolExecutor(workers, fork_server([function.__module__]), _begin) as pool:
        futures = {pool.submit(_logged, function, task): n for n, task in tasks.items()}
        try:
            for future in as_completed(futures):
                result, events = future.result()
                replay(events)
                yield futures[future], result
        except (Interrupted, GeneratorExit):
            end_workers()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """Set up a worker: `set_up_process`, and it ends when its parent process is killed.

    It ignores interrupts, which a terminal sends to all processes: its parent handles them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_up_process()
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _logged(
    function: Callable[[Task], Result], task: Task
) -> tuple[Result, list[logging.LogRecord]]:
    """Call a function; return its result and the events it logged."""
    with collected() as events:
        return function(task), events


def _on_ray(
    function: Callable[[Task], Result], tasks: Sequence[Task], address: str, gpus: int
) -> Iterator[tuple[Task, Result]]:
    import ray  # noqa: PLC0415 - Ray takes seconds to import

    started = start_ray(address)

    @ray.remote(num_cpus=1, num_gpus=gpus)
    def call(task: Task) -> tuple[Result, list[logging.LogRecord]]:
        set_up_process()
        return _logged(function, task)

    try:
        pending = {call.remote(task): task for task in tasks}
        while pending:
            (done,), _ = ray.wait(list(pending))
            result, events = ray.get(done)
            replay(events)
            yield pending.pop(done), result
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise WorkerLostError(f"{_KILLED}, whenever Ray retried its task") from error
    finally:
        if started:
            ray.shutdown()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
