"""Start the fork server, which imports what worker processes need; each worker is its fork.

Imports then cost time and memory once. A fork of the main process would hang in its torch threads.
This module imports little, so that the fork server can start while the main process still imports
the rest. Ctrl-C reaches every process: workers ignore it, and the main process ends them.
"""

import multiprocessing
import signal
from collections.abc import Sequence
from multiprocessing.context import BaseContext

_LAZY = ("flwr_datasets.partitioner", "sklearn.datasets")  # what `fl_sim.data` imports on first use


def fork_server(modules: Sequence[str]) -> BaseContext:
    """Return how to start workers: from a fork server, on systems that have one.

    Unless the fork server runs already, it is started and imports ``modules``, given by name.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver, resource_tracker  # noqa: PLC0415 - not on every system

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*modules, *_LAZY])
    resource_tracker.ensure_running()  # it unblocks signals
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # its children inherit this
    forkserver.ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return context
