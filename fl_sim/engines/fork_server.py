"""The fork server: it imports what worker processes need, runs none of it, and is forked for each.

Workers are never forks of the process they work for, whose torch threads would hang in them; and
the time and memory of imports are spent once. This module is light to import, so that a fork
server can start while this process still imports the rest. An interrupt at the keyboard reaches
every process: workers ignore it, and the process they work for ends them.
"""

import multiprocessing
import signal
from collections.abc import Sequence
from multiprocessing.context import BaseContext

_LAZY = ("flwr_datasets.partitioner", "sklearn.datasets")  # `fl_sim.data` imports them when used


def fork_server(modules: Sequence[str]) -> BaseContext:
    """Return how workers start: from a fork server, where the system has one.

    It is started unless it runs already, and then imports ``modules``, by name.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver, resource_tracker  # noqa: PLC0415 - not on every system

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*modules, *_LAZY])
    resource_tracker.ensure_running()  # it unblocks signals
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # in all it starts
    forkserver.ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return context
