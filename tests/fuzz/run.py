"""Fuzz what bytes of strangers reach: ``python -m tests.fuzz.run --minutes 15 [--target NAME]``.

Coverage-guided (atheris: ``pip install ".[fuzz]"``). A case that raises, takes longer than
`SECONDS` or allocates more than `MEMORY` ends the run of its target; it is written to
``tests/fuzz/cases/<target>/``, where it stays as a test once it is mended.
"""

import argparse
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

CASES = Path(__file__).parent / "cases"
SECONDS = 5
MEMORY = 2**31
SLICE = 300


def fuzz(target: str, seconds: int, corpus: Path) -> None:
    """Fuzz one target in this process; does not return."""
    import atheris  # an extra

    with atheris.instrument_imports(include=["fl_sim", "server"]):
        from tests.fuzz import targets
    for name in ("flwr", "fl_sim"):  # millions of refusals
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for number, seed in enumerate(targets.seeds(target)):
        (corpus / f"seed-{number}").write_bytes(seed)
    found = CASES / target
    found.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}",
        "-rss_limit_mb=4096",
        "-max_len=4096",
        f"-artifact_prefix={found}/",
    ]
    atheris.Setup([sys.argv[0], str(corpus), *options], _bounded(targets.TARGETS[target]))
    atheris.Fuzz()


def _bounded(answer: Callable[[bytes], bool]) -> Callable[[bytes], None]:
    """Let no case allocate more than `MEMORY` or take more than `SECONDS` of processor time.

    What the fuzzer itself gathers does not count. A case that never ends is ended with its process.
    """
    executions = 0

    def bounded(data: bytes) -> None:
        nonlocal executions
        if executions % 256 == 0:
            # The fuzzer's alarm counts the time that others have the processor.
            signal.setitimer(signal.ITIMER_REAL, 0)
            limit = _mapped() + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        executions += 1
        start = time.process_time()
        answer(data)
        if time.process_time() - start > SECONDS:
            raise TimeoutError(f"a case took more than {SECONDS} s of processor time")

    return bounded


def _mapped() -> int:
    """Bytes of address space this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _run(target: str, seconds: int) -> tuple[int, int]:
    """Fuzz one target in processes of their own; return executions and the last exit status.

    One process after the other on one corpus, since a fuzzer's own memory grows with executions.
    """
    executions, status, deadline = 0, 0, time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as corpus:
        while not status and (left := round(deadline - time.monotonic())) > 0:
            command = [sys.executable, "-m", "tests.fuzz.run", "--target", target]
            command += ["--inside", corpus, "--seconds", str(min(left, SLICE))]
            done = subprocess.run(
                command, timeout=SLICE * 4, check=False, capture_output=True, errors="replace"
            )
            counts = re.findall(r"^#(\d+)|Done (\d+) runs", done.stderr, flags=re.MULTILINE)
            executions += max((int(a or b) for a, b in counts), default=0)
            status = done.returncode
            if status:
                print(done.stderr[-4000:], file=sys.stderr)
    return executions, status


def main() -> int:
    """Fuzz the targets in turn and print the executions of each."""
    names = ("payload", "replies", "observations", "reconstructions")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="in total")
    parser.add_argument("--target", choices=names, action="append")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    chosen = given.target or names
    if given.inside:
        fuzz(chosen[0], given.seconds, Path(given.inside))
    worst, before = 0, 0.0
    for target in chosen:
        seconds = round(60 * given.minutes / len(chosen))
        executions, status = _run(target, seconds)
        worst = max(worst, status)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = used.ru_utime + used.ru_stime
        print(
            f"{target}: {executions:,} executions in {seconds} s, {spent - before:.0f} s of CPU, "
            f"exit status {status}",
            flush=True,
        )
        before = spent
    return worst


if __name__ == "__main__":
    sys.exit(main())
