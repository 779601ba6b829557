"""The log of a run: one line of JSON for each event, and what a terminal shows of them."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "routine"}


class JsonLines(logging.Formatter):
    """Format a record as one line of JSON: time, level, logger, message, and its extra facts."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _File(logging.StreamHandler):  # type: ignore[type-arg]
    """Raises what goes wrong, such as a full disk, where logging would print and go on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, ARG002
        raise  # noqa: PLE0704 - logging calls it while it handles the error


@contextmanager
def log_file(path: Path, *, quiet: bool = False, verbose: bool = False) -> Iterator[Counter[str]]:
    """Append events to ``path`` while the block runs, and show warnings on standard error.

    Warnings marked ``routine``, which a healthy study has too, are only counted.

    Parameters
    ----------
    path : Path
        File of JSON lines, with all that happens at level INFO and above.
    quiet : bool
        Show errors only.
    verbose : bool
        Show every event.

    Yields
    ------
    Counter
        Number of routine warnings so far, by event.
    """
    counted: Counter[str] = Counter()
    with path.open("a", encoding="utf-8") as stream:
        file = _File(stream)
        file.setFormatter(JsonLines())
        shown = RichHandler(console=Console(stderr=True), show_path=False)
        shown.setLevel(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)

        def show(record: logging.LogRecord) -> bool:
            routine = getattr(record, "routine", False)
            if routine:
                counted[getattr(record, "event", "")] += 1
            return verbose or not routine

        shown.addFilter(show)
        with _handled(file, shown):
            yield counted


@contextmanager
def collected() -> Iterator[list[logging.LogRecord]]:
    """Collect the events of the block, e.g. in a worker, for `replay` in another process."""
    records: list[logging.LogRecord] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            record.msg, record.args, record.exc_info = record.getMessage(), None, None
            records.append(record)

    with _handled(Collector()):
        yield records


def replay(records: Iterable[logging.LogRecord]) -> None:
    """Log events that another process collected."""
    for record in records:
        logging.getLogger(record.name).handle(record)


@contextmanager
def _handled(*handlers: logging.Handler) -> Iterator[None]:
    """Let handlers see all events of the project, and the warnings of all others."""
    root, own = logging.getLogger(), logging.getLogger("fl_sim")
    level = own.level
    own.setLevel(logging.INFO)
    logging.captureWarnings(True)
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            root.removeHandler(handler)
        logging.captureWarnings(False)
        own.setLevel(level)
