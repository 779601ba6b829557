"""End a command within seconds when it is interrupted or asked to terminate."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil  # type: ignore[import-untyped]

KEPT = "finished work is kept; run the same command to continue"
"""What a command that ends early tells the user."""

_PATIENCE = 1.0  # seconds to unwind; no file needs more, as all are written atomically
_SIGNALS = [one for one in signal.Signals if one.name in ("SIGINT", "SIGTERM", "SIGHUP")]


class Interrupted(BaseException):
    """A signal asked the process to end.

    Attributes
    ----------
    status : int
        Exit status: 128 plus the signal, 130 for SIGINT and 143 for SIGTERM.
    """

    def __init__(self, signum: int) -> None:
        self.status = 128 + signum
        self._told = False
        super().__init__(f"{signal.Signals(signum).name} received")

    def announce(self) -> None:
        """Print one line for the user, once."""
        word = "interrupted" if self.status == 128 + signal.SIGINT else "terminated"
        if not self._told:
            with suppress(OSError):  # the terminal, or the reader of a pipe, may be gone
                print(f"{word}; {KEPT}", file=sys.stderr, flush=True)
        self._told = True


class WorkerLostError(RuntimeError):
    """An engine lost a worker process; what the worker computed did not fail, but is missing."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` in the main thread on SIGINT, SIGTERM and SIGHUP.

    If the process has not ended after a second, for example because it waits for a client or a
    cluster, it is killed with all processes that it started. A second signal kills them at once.
    Under ``nohup`` SIGHUP stays ignored.
    """
    with keeping_signals():
        for one in _SIGNALS:
            if one.name != "SIGHUP" or signal.getsignal(one) is not signal.SIG_IGN:
                signal.signal(one, _raise)
        yield


@contextmanager
def keeping_signals() -> Iterator[None]:
    """Restore all signal handlers at the end of the block: Ray replaces that of SIGTERM."""
    former = {one: signal.getsignal(one) for one in _SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # only this one may set them
            for one, handler in former.items():
                signal.signal(one, handler)


def end_workers() -> None:
    """Terminate the worker processes that this process started."""
    for child in multiprocessing.active_children():
        child.terminate()


def _raise(signum: int, frame: FrameType | None) -> None:
    del frame
    logging.disable()  # errors that the end itself causes are of no interest
    request = Interrupted(signum)
    for one in _SIGNALS:
        signal.signal(one, lambda *_: _end(request))
    deadline = threading.Timer(_PATIENCE, _end, [request])
    deadline.daemon = True
    deadline.start()
    raise request


def _end(request: Interrupted) -> None:
    """Kill this process and all that it started, such as a local Ray cluster."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "multiprocessing.resource_tracker" not in " ".join(process.cmdline()):
                process.kill()  # the tracker deletes what is left over, then ends by itself
    with suppress(OSError):
        sys.stdout.flush()
    request.announce()
    os._exit(request.status)
