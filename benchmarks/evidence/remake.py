"""Make the evidence again: the tables and pictures of docs/ that attacks and studies produce.

``make results``, or ``python -m benchmarks.evidence.remake``. Each part writes one CSV file below
``docs/results``, whose rows name the commit, the fingerprint of the code, and the command. A part
whose file names the present fingerprint and command is left as it is; a part that was interrupted
continues. Then run ``python -m docs.render``, which writes the tables into the pages.

Not made here: timings (``docs/results/performance``), which are those of one machine and have
programs of their own, and counts of mutants.
"""

import argparse
import io
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
from PIL import Image

import run_simulation
from benchmarks.evidence.findings import TABLES
from benchmarks.provenance import commit
from fl_sim.floors import ATTACK_CODE, SCORING_CODE, TRAINING_CODE
from fl_sim.storage.fingerprint import code_version
from results.reading.study_reader import load_run
from results.tables.csv_text import write_csv

PRETRAIN = (
    "pretrain weights/cifar10.safetensors --dataset parquet --data-dir ../shared/data/cifar10_full "
    "--model convnet:layers=2,norm=batch,activation=relu --normalize-mean 0.491,0.482,0.447 "
    "--normalize-std 0.247,0.243,0.262 --epochs 12"
)
"""Trains the network of the study `realistic`, unless that is done."""
RESULTS, IMAGES = Path("docs/results"), Path("docs/images")
MADE_BY = ("commit", "code", "command")
_TINY = "iterations=2,warmup=0,restarts=0,tv=0.001"


@dataclass(frozen=True)
class Place:
    """Where a part reads and writes, and at what size.

    Attributes
    ----------
    results, images : Path
        Folders of the tables and of the pictures.
    work : Path
        Folder of what is kept in between, so that a part continues.
    data_dir : Path
        Folder of the CIFAR images.
    workers : int
        Processes side by side; 0: one per core.
    smoke : bool
        Whether parts run at a size of seconds.
    """

    results: Path
    images: Path
    work: Path
    data_dir: Path
    workers: int
    smoke: bool


@dataclass(frozen=True)
class Part:
    """One table of the evidence.

    Attributes
    ----------
    csv : str
        File below ``docs/results``.
    minutes : float
        CPU minutes at full size.
    command : str
        How a user makes it, without the options of this machine.
    modules : tuple of str
        What the fingerprint of its code begins with.
    run : callable
        Makes the table.
    pictures : Mapping[str, str]
        Pictures of a run that become pictures of the pages.
    """

    csv: str
    minutes: float
    command: str
    modules: tuple[str, ...]
    run: Callable[[Place], pd.DataFrame]
    pictures: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name for ``--only``."""
        return Path(self.csv).stem

    @property
    def made_by(self) -> dict[str, str]:
        """What the rows of its file name, without the commit."""
        return {"code": code_version(self.modules), "command": self.command}

    def stands(self, place: Place) -> bool:
        """Tell whether its file was made by the present code and command."""
        path = place.results / self.csv
        if not path.exists():
            return False
        kept = pd.read_csv(path, dtype=str, keep_default_na=False)
        return len(kept) > 0 and all(
            name in kept and set(kept[name]) == {value} for name, value in self.made_by.items()
        )

    def make(self, place: Place) -> None:
        """Write its file and pictures."""
        table = self.run(place).drop(columns=list(MADE_BY), errors="ignore")
        write_csv(place.results / self.csv, table.assign(commit=commit(), **self.made_by))
        for source, target in self.pictures.items():
            if place.smoke and not (place.work / self.name / source).exists():
                continue  # of a setting that has several values at full size only
            (place.images / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(place.work / self.name / source, place.images / target)


def _study(
    name: str,
    minutes: float,
    csv: str = "",
    pictures: Mapping[str, str] | None = None,
    first: str = "",
) -> Part:
    """Return the part that runs a study and sums it up, at full size after another command."""

    def run(place: Place) -> pd.DataFrame:
        root, file = place.work / name, Path("studies") / f"{name}.toml"
        if first and not place.smoke:
            _call(run_simulation.main, first.split())
        options = ["--study", file, "--out", root, "--workers", place.workers]
        if place.smoke:
            options.append("--smoke")
        elif 'dataset = "folder"' in file.read_text(encoding="utf-8"):
            options += ["--data-dir", place.data_dir]
        _call(run_simulation.main, options)
        return TABLES[name](load_run(root))

    command = f"python run_simulation.py --study studies/{name}.toml"
    code = (*TRAINING_CODE, *ATTACK_CODE, *SCORING_CODE, "benchmarks.evidence.findings")
    return Part(csv or f"findings/{name}.csv", minutes, command, code, run, pictures or {})


def _pictures(target: str, *names: str) -> dict[str, str]:
    """Return where pictures of a run go below ``docs/images``."""
    return {f"{name}.png": target.format(name) for name in names}


def _program(csv: str, minutes: float, module: str, full: str, smoke: str) -> Part:
    """Return the part that runs a program of ``benchmarks``, which prints or writes its table."""

    def run(place: Place) -> pd.DataFrame:
        options = [*(smoke if place.smoke else full).split(), "--data-dir", place.data_dir]
        written = place.work / Path(csv).name
        if module.endswith("attack_table"):
            work = place.work / Path(csv).stem
            options += ["--out", written, "--work", work, "--workers", place.workers]
        printed = _call(import_module(module).main, options)
        source = written if written.exists() else io.StringIO(printed)
        return pd.read_csv(source, dtype=str, keep_default_na=False)

    return Part(csv, minutes, f"python -m {module} {full}", (module,), run)


PARTS = (
    _study("default", 4, "default.csv", _pictures("{}.png", "curve", "gallery")),
    _program(
        "attacks/table.csv",
        120,
        "benchmarks.attack_table",
        "--victims 24 --skip 200 --plain",
        f"--victims 2 --trial sign cell:{_TINY} scaled:{_TINY}",
    ),
    _program(
        "attacks/settings.csv",
        30,
        "benchmarks.attack_table",
        "--victims 8 --skip 200 --rest",
        f"--victims 2 --trial none cell:{_TINY} scaled:{_TINY}",
    ),
    _program(
        "attacks/joint_rounds.csv",
        8,
        "benchmarks.joint_rounds",
        "--victims 24 --skip 200",
        f"--victims 2 --observe 1 2 --quantizers sign --attacks cell:{_TINY} joint:{_TINY}",
    ),
    _program(
        "attacks/imprint.csv",
        2,
        "benchmarks.servers.imprint",
        "--images 128 --batches 8 32",
        "--images 4 --batches 2 --quantizers none sign",
    ),
    _program(
        "attacks/batches.csv",
        60,
        "benchmarks.evidence.batches",
        "--victims 20 --attacks spear cocktail_party cocktail_party_cell",
        "--victims 2 --batches 2 --quantizers none",
    ),
    _program(
        "attacks/consensus.csv",
        20,
        "benchmarks.evidence.consensus",
        "--victims 6",
        "--victims 1 --quantizers none --settings batch_8",
    ),
    _program(
        "attacks/label_counts.csv",
        12,
        "benchmarks.label_counts",
        "--victims 60 --models lenet_dlg --steps 100 600 --quantizers none uniform:bits=4 sign",
        "--victims 2 --models lenet_dlg --steps 1 --quantizers none",
    ),
    _study("one_bit", 25, pictures=_pictures("one_bit-{}.png", "curve", "gallery")),
    _study("dlg_table", 20),
    _study("stages", 25, pictures=_pictures("stages-{}.png", "gallery")),
    _study("accuracy", 12, pictures=_pictures("accuracy-{}.png", "curve")),
    _study("error_feedback", 3),
    _study("curves", 7, pictures=_pictures("findings/curves-{}.png", "curve", "curve_by_round")),
    _study("curves_cifar", 35, pictures=_pictures("findings/curves_cifar-{}.png", "curve")),
    _study("defences", 3, pictures=_pictures("findings/defences-{}.png", "curve")),
    _study("malicious", 27, pictures=_pictures("findings/malicious-{}.png", "psnr_by_server")),
    _study(
        "realistic",
        40,
        pictures=_pictures(
            "findings/realistic-{}.png", "psnr_by_batch_size", "psnr_by_initial_weights"
        ),
        first=PRETRAIN,
    ),
    _study("realistic_malicious", 8),
)


def main() -> None:
    arguments = _arguments()
    place = _place(arguments)
    chosen = [part for part in PARTS if not arguments.only or part.name in arguments.only]
    left = [part for part in chosen if not part.stands(place)]
    for part in chosen:
        state = f"{part.minutes:g} CPU minutes" if part in left else "stands"
        print(f"{part.name}: {state}; {part.command}", flush=True)
    size = "at smoke size" if place.smoke else f"{sum(one.minutes for one in left):g} CPU minutes"
    print(f"{len(left)} of {len(chosen)} parts to make, {size}", flush=True)
    if arguments.list:
        return
    for part in left:
        began = time.monotonic()
        part.make(place)
        print(f"{part.name}: made in {(time.monotonic() - began) / 60:.1f} minutes", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="only say what is left, and its cost")
    parser.add_argument("--smoke", action="store_true", help="parts of seconds, on made-up images")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], metavar="PART")
    parser.add_argument("--workers", type=int, default=0, help="0: one per core")
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--out", type=Path, help="folder in the place of docs")
    return parser.parse_args()


def _place(arguments: argparse.Namespace) -> Place:
    if not arguments.smoke:
        out = arguments.out or RESULTS.parent
        names = (out / RESULTS.name, out / IMAGES.name, Path("runs/results"))
        return Place(*names, arguments.data_dir, arguments.workers, smoke=False)
    out = arguments.out or Path("runs/results-smoke")
    data = out / "made-up"
    if not data.exists():
        _draw_images(data)
    names = (out / RESULTS.name, out / IMAGES.name, out / "work")
    return Place(*names, data, arguments.workers, smoke=True)


def _draw_images(root: Path) -> None:
    """Write random coloured blots in ten classes, where no data set is at hand."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 2)):
        for label in range(10):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for number in range(count):
                blots = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
                blots.resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{number}.png")


def _call(main: Callable[[], None], options: Sequence[object]) -> str:
    """Run the main function of a program with its options; return what it prints."""
    words = ["", *map(str, options)]
    with mock.patch.object(sys, "argv", words), redirect_stdout(io.StringIO()) as printed:
        main()
    return printed.getvalue()


if __name__ == "__main__":
    main()
