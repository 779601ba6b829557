"""Encode and decode time of every quantizer on one thread, beside a memory copy and packbits.

    python benchmarks/quantizers.py [--parameters 25000000] [--repeats 9] [SPEC ...]

Each line gives the fastest, the median and the slowest of several runs. Ratios are medians over
runs of the quantizer's time to that of a rival timed just before: `/copy` is ``tensor.clone()``
and `/packbits` is ``numpy.packbits(array >= 0).tobytes()``. `cpu` is the median processor time,
which other processes on the machine disturb least.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from statistics import median

import numpy as np
import torch

from fl_sim.quantizers import parse_quantizer
from fl_sim.quantizers.catalogue import EXAMPLES
from fl_sim.updates.local_update import Layout, Segment, Update

Work = tuple[str, Callable[[], object], Callable[[], object]]
"""Name, encode and decode."""


def times(
    runs: Sequence[Callable[[], object]], repeats: int, clock: Callable[[], float]
) -> list[list[float]]:
    """Return the seconds of each run, repeated in turn so that all see the same noise."""
    measured: list[list[float]] = [[] for _ in runs]
    for repeat in range(repeats + 1):
        for run, own in zip(runs, measured, strict=True):
            start = clock()
            run()
            if repeat:  # the first is to warm up
                own.append(clock() - start)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("specs", nargs="*", default=EXAMPLES, metavar="SPEC")
    parser.add_argument("--parameters", type=int, default=25_000_000)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)

    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(options.parameters, generator=generator) * 1e-3
    update = Update(vector, Layout((Segment("weight", (options.parameters,)),)))
    array = vector.numpy()
    print(f"{options.parameters:,} float32 parameters, one thread, torch {torch.__version__}, ms\n")
    print(f"{'':34}{'encode':^40}{'':4}{'decode':^32}")
    columns = f"{'min':>8}{'median':>8}{'max':>8}{'cpu':>8}"
    print(f"{'spec':34}{columns}{'/packbits':>10}{'/copy':>7}{columns}{'/copy':>7}")
    works = [work_of(spec, update, generator) for spec in options.specs]
    rivals_of_each = (lambda: np.packbits(array >= 0).tobytes(), vector.clone)
    for name, encode, decode in (*works, *rivals(vector)):
        runs = (*rivals_of_each, encode, decode)
        packbits, copy, *wall = times(runs, options.repeats, time.perf_counter)
        cpu = times((encode, decode), options.repeats, time.thread_time)
        cells = [
            "".join(f"{t * 1e3:8.1f}" for t in (min(w), median(w), max(w), median(c)))
            for w, c in zip(wall, cpu, strict=True)
        ]
        print(
            f"{name:34}{cells[0]}{_ratio(wall[0], packbits):10.2f}{_ratio(wall[0], copy):7.2f}"
            f"{cells[1]}{_ratio(wall[1], copy):7.2f}",
            flush=True,
        )


def _ratio(own: list[float], rival: list[float]) -> float:
    return median(a / b for a, b in zip(own, rival, strict=True))


def work_of(spec: str, update: Update, generator: torch.Generator) -> Work:
    """Return the work of one of this project's quantizers."""
    quantizer = parse_quantizer(spec)
    payload = quantizer.encode(update, generator)
    return (
        spec,
        lambda: quantizer.encode(update, generator),
        lambda: quantizer.decode(payload),
    )


def rivals(vector: torch.Tensor) -> list[Work]:
    """Return the comparable work of other libraries: name, encode, decode."""
    array = vector.numpy()
    signs = np.packbits(array >= 0)
    found: list[Work] = [
        (
            "numpy packbits (sign)",
            lambda: np.packbits(array >= 0).tobytes(),
            lambda: np.unpackbits(signs).astype(np.float32) * 2 - 1,
        )
    ]
    try:
        bnb = import_module("bitsandbytes.functional")
    except ImportError:
        return found
    codes, state = bnb.quantize_blockwise(vector, blocksize=256)
    found.append(
        (
            "bitsandbytes blockwise 8 bit, 256",
            lambda: bnb.quantize_blockwise(vector, blocksize=256),
            lambda: bnb.dequantize_blockwise(codes, state),
        )
    )
    return found


if __name__ == "__main__":
    main()
