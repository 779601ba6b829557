"""End a command within seconds when it is interrupted or asked to terminate."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from types import FrameType

KEPT = "what was finished stays, the same command goes on"
"""What a command that ends early tells its user."""

_PATIENCE = (
    1.0  # seconds to unwind in; every file is written atomically, so none need be waited for
)


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
            print(f"{word}; {KEPT}", file=sys.stderr, flush=True)
        self._told = True


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` in the main thread on SIGINT, SIGTERM and SIGHUP.

    Whatever still waits after a second, for a client or a cluster say, is left: the process and
    its workers then end at once. So they do at a second signal.
    """
    signals = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if os.name == "posix" else [])]
    former = {one: signal.signal(one, _raise) for one in signals}
    try:
        yield
    finally:
        for one, handler in former.items():
            signal.signal(one, handler)


def end_workers() -> None:
    """Terminate the processes that this one started."""
    for child in multiprocessing.active_children():
        child.terminate()


def _raise(signum: int, frame: FrameType | None) -> None:
    del frame
    request = Interrupted(signum)
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, lambda *_: _end(request))
    deadline = Timer(_PATIENCE, _end, [request])
    deadline.daemon = True
    deadline.start()
    raise request


def _end(request: Interrupted) -> None:
    """End this process and its workers now."""
    end_workers()
    sys.stdout.flush()
    request.announce()
    os._exit(request.status)
