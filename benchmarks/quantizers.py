"""Encode and decode throughput of every quantizer on one thread, beside a memory copy.

    python benchmarks/quantizers.py [--parameters 25000000] [--repeats 5] [SPEC ...]

Each line gives the best of several runs. `copy` is ``tensor.clone()``, which allocates its result
as encode and decode allocate theirs; `copy into` is ``copy_`` into memory already at hand. Ratios
are memory-copy time over the quantizer's time: 0.10 is a tenth of the speed of the copy.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from fl_sim.quantizers import parse_quantizer
from fl_sim.updates import Layout, Segment, Update

SPECS = (
    "none",
    "bf16",
    "fp8:format=e4m3",
    "uniform:bits=8",
    "uniform:bits=4",
    "uniform:bits=2",
    "absmax:bits=4",
    "stochastic:bits=4",
    "qsgd:levels=7,norm=inf",
    "terngrad",
    "natural",
    "sign",
    "scaled_sign",
    "log:base=2",
    "kmeans:clusters=16",
    "fixed_point:bits=8,fraction=14",
    "blockwise:bits=8,block=256",
    "topk:keep=0.01",
    "topk:keep=0.1+stochastic:bits=4",
    "drive",
    "eden:bits=4",
)


def best_time(run: Callable[[], object], repeats: int) -> float:
    """Return the seconds of the fastest of ``repeats`` runs, after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("specs", nargs="*", default=SPECS, metavar="SPEC")
    parser.add_argument("--parameters", type=int, default=25_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)

    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(options.parameters, generator=generator) * 1e-3
    layout = Layout((Segment("weight", (options.parameters,)),))
    update = Update(vector, layout)
    spare = torch.empty_like(vector)
    copy = best_time(vector.clone, options.repeats)
    copy_into = best_time(lambda: spare.copy_(vector), options.repeats)
    gigabytes = vector.nbytes / 1e9
    print(f"{options.parameters:,} float32 parameters, one thread, torch {torch.__version__}")
    print(
        f"copy {copy * 1e3:.1f} ms ({gigabytes / copy:.1f} GB/s), copy into "
        f"{copy_into * 1e3:.1f} ms ({gigabytes / copy_into:.1f} GB/s)\n"
    )
    print(
        f"{'spec':34}{'encode':>10}{'/copy':>7}{'/into':>7}{'decode':>10}{'/copy':>7}{'/into':>7}"
    )
    for spec in options.specs:
        quantizer = parse_quantizer(spec)
        payload = quantizer.encode(update, generator)
        encode = best_time(lambda: quantizer.encode(update, generator), options.repeats)
        decode = best_time(lambda: quantizer.decode(payload), options.repeats)
        print_line(spec, encode, decode, copy, copy_into)
    for name, encode_run, decode_run in rivals(vector):
        print_line(
            name,
            best_time(encode_run, options.repeats),
            best_time(decode_run, options.repeats),
            copy,
            copy_into,
        )


def print_line(name: str, encode: float, decode: float, copy: float, copy_into: float) -> None:
    cells = "".join(
        f"{t * 1e3:>7.1f} ms{copy / t:>7.2f}{copy_into / t:>7.2f}" for t in (encode, decode)
    )
    print(f"{name:34}{cells}", flush=True)


def rivals(vector: torch.Tensor) -> list[tuple[str, Callable[[], object], Callable[[], object]]]:
    """Return the comparable work of other libraries: name, encode, decode."""
    array = vector.numpy()
    signs = np.packbits(array >= 0)
    found: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        (
            "numpy packbits (sign)",
            lambda: np.packbits(array >= 0).tobytes(),
            lambda: np.unpackbits(signs).astype(np.float32) * 2 - 1,
        )
    ]
    try:
        from bitsandbytes import functional as bnb
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
