"""Encode and decode throughput of every quantizer on one thread, beside a memory copy.

    python benchmarks/quantizers.py [--parameters 25000000] [--repeats 5] [SPEC ...]

Each line gives the best of several runs, the copies timed in turn with the quantizer. `copy` is
``tensor.clone()``, which allocates its result as encode and decode allocate theirs; `into` is
``copy_`` into memory already at hand. Ratios are memory-copy time over the quantizer's time: 0.10
is a tenth of the speed of the copy.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from importlib import import_module

import numpy as np
import torch

from fl_sim.quantizers import parse_quantizer
from fl_sim.quantizers.catalogue import EXAMPLES
from fl_sim.updates.local_update import Layout, Segment, Update

Work = tuple[str, Callable[[], object], Callable[[], object]]
"""Name, encode and decode."""


def best_times(runs: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Return the seconds of the fastest run of each, run in turn so that all see the same noise."""
    best = [float("inf")] * len(runs)
    for _ in range(repeats + 1):
        for index, run in enumerate(runs):
            start = time.perf_counter()
            run()
            best[index] = min(best[index], time.perf_counter() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("specs", nargs="*", default=EXAMPLES, metavar="SPEC")
    parser.add_argument("--parameters", type=int, default=25_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)

    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(options.parameters, generator=generator) * 1e-3
    layout = Layout((Segment("weight", (options.parameters,)),))
    update = Update(vector, layout)
    spare = torch.empty_like(vector)
    copies = vector.clone, lambda: spare.copy_(vector)
    print(f"{options.parameters:,} float32 parameters, one thread, torch {torch.__version__}\n")
    columns = f"{'encode':>10}{'/copy':>7}{'/into':>7}{'decode':>10}{'/copy':>7}{'/into':>7}"
    print(f"{'spec':34}{columns}{'copy':>10}{'into':>10}")
    works = [work_of(spec, update, generator) for spec in options.specs]
    for name, encode, decode in (*works, *rivals(vector)):
        *times, copy, into = best_times((encode, decode, *copies), options.repeats)
        cells = "".join(f"{t * 1e3:>7.1f} ms{copy / t:>7.2f}{into / t:>7.2f}" for t in times)
        cells += f"{copy * 1e3:>7.1f} ms{into * 1e3:>7.1f} ms"
        print(f"{name:34}{cells}", flush=True)


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
