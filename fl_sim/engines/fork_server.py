"""The process that workers are forks of: it has imported all they need, and run none of it.

They are never forks of the process they work for, whose torch threads would hang in them; and
start-up and memory are paid once. It is light to import, so that a fork server can be started
while this process is still importing the rest. An interrupt at the keyboard reaches every process:
workers leave it to the one they work for, which ends them.
"""

import multiprocessing
import signal
from multiprocessing.context import BaseContext

from fl_sim.floors import PREFIX

_IMPORTS = [f"{PREFIX}server.study", "flwr_datasets.partitioner", "sklearn.datasets"]


def fork_server() -> BaseContext:
    """Return how workers start: from a fork server, started if need be, where there are such."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver, resource_tracker  # noqa: PLC0415 - not on every system

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTS)
    resource_tracker.ensure_running()  # it unblocks signals
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # in all it starts
    forkserver.ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return context
