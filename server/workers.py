"""Independent tasks side by side: in this process, over processes, or over a Ray cluster."""

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.context import BaseContext
from typing import TypeVar

import torch

from fl_sim.settings import EngineSettings

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_tasks(
    function: Callable[[Task], Result], tasks: Sequence[Task], engine: EngineSettings
) -> Iterator[tuple[Task, Result]]:
    """Yield each task with its result as it is done; one torch thread a process.

    Results must not depend on where a task runs: a task carries all it needs, its seed included.

    Parameters
    ----------
    function : callable
        A function of an importable module.
    tasks : sequence
        What it is called with, one by one; pickled, except in this process.
    engine : EngineSettings
        ``workers`` processes (0: one per core) on this machine, or the cluster of ``ray``.
    """
    workers = min(engine.workers or _cores(), len(tasks))
    if engine.engine == "ray" and tasks:
        yield from _on_ray(function, tasks, engine.ray_address)
    elif workers > 1:
        yield from _over_processes(function, tasks, workers)
    else:
        torch.set_num_threads(1)
        for task in tasks:
            yield task, function(task)


def _over_processes(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[tuple[Task, Result]]:
    with ProcessPoolExecutor(workers, _context(function), torch.set_num_threads, (1,)) as pool:
        futures = {pool.submit(function, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _context(function: Callable[[Task], Result]) -> BaseContext:
    """Return how workers start: never as forks of this process, whose torch threads would hang.

    Where there is a fork server they are forks of it; it has imported all they need and run none,
    so that start-up and memory are paid once.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    return context


def _on_ray(
    function: Callable[[Task], Result], tasks: Sequence[Task], address: str
) -> Iterator[tuple[Task, Result]]:
    import ray  # noqa: PLC0415 - Ray takes seconds to import

    started = not ray.is_initialized()
    if started:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)

    @ray.remote(num_cpus=1)
    def call(task: Task) -> Result:
        torch.set_num_threads(1)
        return function(task)

    try:
        pending = {call.remote(task): task for task in tasks}
        while pending:
            (done,), _ = ray.wait(list(pending))
            yield pending.pop(done), ray.get(done)
    finally:
        if started:
            ray.shutdown()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
