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

KEPT = "what was finished stays, the same command goes on"
"""What a command that ends early tells its user."""

_PATIENCE = 1.0  # seconds to unwind in; files are written atomically, so none is waited for
_SIGNALS = [one for one in signal.Signals if one.name in ("SIGINT", "SIGTERM", "SIGHUP")]


class Interrupted(BaseException):
    """The process was asked to end.

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
        """Tell the user in one line, once."""
        word = "interrupted" if self.status == 128 + signal.SIGINT else "terminated"
        if not self._told:
            with suppress(OSError):  # the terminal, or the reader of a pipe, may be gone
                print(f"{word}; {KEPT}", file=sys.stderr, flush=True)
        self._told = True


class WorkerLostError(RuntimeError):
    """An engine lost a worker, and with it results that did not fail."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` in the main thread on SIGINT, SIGTERM and SIGHUP.

    Whatever still waits after a second, for a client or a cluster say, is left: the process and
    all it started then end at once. So they do at a second signal. Under ``nohup`` a SIGHUP stays
    ignored.
    """
    with keeping_signals():
        for one in _SIGNALS:
            if one.name != "SIGHUP" or signal.getsignal(one) is not signal.SIG_IGN:
                signal.signal(one, _raise)
        yield


@contextmanager
def keeping_signals() -> Iterator[None]:
    """Give back, at the end of the block, what signals did before: Ray takes SIGTERM for itself."""
    former = {one: signal.getsignal(one) for one in _SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # no other may set them
            for one, handler in former.items():
                signal.signal(one, handler)


def end_workers() -> None:
    """Terminate the processes that this one started."""
    for child in multiprocessing.active_children():
        child.terminate()


def _raise(signum: int, frame: FrameType | None) -> None:
    del frame
    logging.disable()  # what fails because it ends is no news
    request = Interrupted(signum)
    for one in _SIGNALS:
        signal.signal(one, lambda *_: _end(request))
    deadline = threading.Timer(_PATIENCE, _end, [request])
    deadline.daemon = True
    deadline.start()
    raise request


def _end(request: Interrupted) -> None:
    """End this process and all it started, a local cluster among it, now."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "multiprocessing.resource_tracker" not in " ".join(process.cmdline()):
                process.kill()  # that one ends by itself, once it has deleted what is left
    with suppress(OSError):
        sys.stdout.flush()
    request.announce()
    os._exit(request.status)
