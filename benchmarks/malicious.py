"""What malicious servers read through each quantizer, beside attacks of an honest server.

CIFAR test images drawn by seed. Active rows are of the plan ``thresholds`` on the model ``cnn``,
or of the plan ``ares`` on two models; passive ones of an honest server on ``lenet``, where searches
cost a thousandth. What is done is kept below ``--work``: the same command continues. The file is
written whenever a row is complete.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from attacker.attack import Attack
from attacker.presets import build_attack, suite
from benchmarks.attack_trials import GALLERY, Victims, one_a_client, percent, score
from benchmarks.provenance import commit
from fl_sim.engines.tasks import run_tasks
from fl_sim.models import ModelSpec, build_model
from fl_sim.plans import parse_plan
from fl_sim.quantizers.catalogue import EXAMPLES
from fl_sim.storage.files import write_bytes
from fl_sim.storage.fingerprint import code_version, fingerprint
from fl_sim.study.settings import EngineSettings
from fl_sim.testing import observe
from fl_sim.updates.local_update import Layout, LocalWork
from results.tables.csv_text import write_csv

SHAPE, CLASSES = (3, 32, 32), 10
READER = "active_thresholds"
SIGNS, VALUES = "thresholds", "thresholds:reads=values,levels=10"
FEW = "thresholds:reads=values,levels=1"
PASSIVE = "idlg:restarts=0,iterations=300 or cell:restarts=0"
"""Attacks of an honest server, of which one is chosen by evidence."""

COARSE = "thresholds:reads=values,levels=10,rate=0.5,floor=-0.5"
COARSEST = "thresholds:reads=values,levels=10,rate=0.25,floor=-0.75"

PLANS: dict[str, tuple[str, ...]] = {
    "sign": (SIGNS,),
    "scaled_sign": (SIGNS,),
    "error_feedback(sign)": (SIGNS,),
    "absmax:bits=4": (COARSE,),
    "topk:keep=0.1": (FEW, "thresholds:reads=values,levels=2,rate=0.5"),
    "terngrad": ("thresholds:reads=values,levels=10,rate=0.5",),
    "drive": (VALUES, FEW),
    "qsgd:levels=4,norm=l2": (VALUES, FEW),
    "dp_gaussian:clip=1,noise=0.1": (VALUES, FEW),
    "mixed:first=8,rest=2": (COARSE, COARSEST),
}
"""Plans that are tried against a quantizer; `VALUES` against any other."""

COLUMNS = [f"{kind}, batch {size}" for kind in ("passive", "active") for size in (1, 8, 32)]

_CHUNK = {1: 16, 8: 8, 32: 4, 128: 2}
"""Clients whose payloads are held at once, by batch size."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    quantizer, plan, model, attack : str
        Specs.
    batch, images : int
        Images of a client, and of all.
    steps : int
        Local steps; a gradient is sent if there is one.
    """

    quantizer: str
    plan: str
    attack: str
    batch: int
    images: int
    steps: int = 1
    model: str = "cnn"

    @property
    def work(self) -> LocalWork:
        """What a client computes."""
        if self.steps == 1:
            return LocalWork(batch_size=self.batch)
        return LocalWork("delta", self.batch, learning_rate=0.1, local_steps=self.steps)


@dataclass(frozen=True)
class Job:
    """Some clients of a row."""

    row: Row
    first: int
    clients: int
    data_dir: Path
    seed: int

    @property
    def key(self) -> str:
        """Digits that stand for the job and for the code that does it."""
        job = asdict(self) | {"data_dir": str(self.data_dir), "code": _code()}
        return fingerprint(job)


def main() -> None:
    """Print the table to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/attacks/malicious.csv"))
    parser.add_argument("--work", type=Path, default=Path("runs/malicious"))
    parser.add_argument("--workers", type=int, default=1, help="0: one per core")
    parser.add_argument("--images", type=int, default=256, help="of all clients, in active rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--quantizers", nargs="+", help="rows of the table")
    parser.add_argument("--batches", nargs="+", type=int, help="rows of the table")
    parser.add_argument("--best", type=Path, nargs="+", metavar="CSV", help="only compare these")
    arguments = parser.parse_args()
    if arguments.best:
        write_csv(arguments.out, side_by_side(map(pd.read_csv, arguments.best)))
        return
    rows = list(chosen_rows(arguments))
    jobs = {row: list(_jobs(row, arguments)) for row in rows}
    left = [job for row in rows for job in jobs[row] if not _kept(arguments.work, job).exists()]
    print(f"{len(left)} parts are left", file=sys.stderr)
    for job, scores in run_tasks(score_job, left, EngineSettings(workers=arguments.workers)):
        write_bytes(_kept(arguments.work, job), scores.to_parquet(index=False))
        if all(_kept(arguments.work, one).exists() for one in jobs[job.row]):
            _write(arguments, jobs)
    _write(arguments, jobs)


def best(lines: pd.DataFrame) -> pd.DataFrame:
    """Return the best passive and the best active attack on every quantizer, by batch size.

    Each cell is the share of images below an MSE of 1e-2 and the median PSNR, of the row with the
    largest of both, in this order.
    """
    lines = lines[lines["local steps"] == 1]
    kind = lines["server"].eq("curious").map({True: "passive", False: "active"})
    lines = lines.assign(column=kind + ", batch " + lines["batch"].astype(str))
    lines = lines.sort_values(["MSE < 1e-2 %", "median PSNR dB"])
    shown = lines["MSE < 1e-2 %"].astype(str) + " %, " + lines["median PSNR dB"].astype(str) + " dB"
    told = lines.assign(shown=shown).pivot_table("shown", "quantizer", "column", aggfunc="last")
    return told.join(lines.groupby("quantizer")["commit"].agg(_joined)).reset_index()


def side_by_side(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Return one row for each quantizer: the best passive and active attack, by batch size.

    Parameters
    ----------
    tables : iterable of DataFrame
        Lines of this program, of which `best` is taken, or what this function returned before.
    """
    parts = [best(one) if "server" in one else one for one in tables]
    told = pd.DataFrame()
    for part in parts:
        told = told.combine_first(part.drop(columns="commit").set_index("quantizer"))
    told["commit"] = pd.concat(parts).groupby("quantizer")["commit"].agg(_joined)
    rows = [quantizer for quantizer in EXAMPLES if quantizer in told.index]
    columns = [name for name in COLUMNS if name in told]
    return told.loc[rows, [*columns, "commit"]].reset_index()


def _joined(commits: pd.Series) -> str:
    """Return all commits that are named, each once."""
    return ", ".join(sorted(set(", ".join(commits).split(", "))))


def chosen_rows(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows that the command line asks for."""
    for name in arguments.sets:
        for row in SETS[name](arguments.images):
            asked = not arguments.quantizers or row.quantizer in arguments.quantizers
            if asked and (not arguments.batches or row.batch in arguments.batches):
                yield row


def _active(quantizer: str, plan: str, batch: int, images: int, steps: int = 1) -> Row:
    more = {"batch": batch} | ({"slope": 1e-8} if steps > 1 else {})
    return Row(quantizer, _with(plan, **more), READER, batch, images, steps)


def _with(plan: str, **parameters: float) -> str:
    """Return the spec of a plan with further parameters."""
    return parse_plan(plan + (":" if ":" not in plan else ",") + _listed(parameters)).spec


def _listed(parameters: dict[str, float]) -> str:
    return ",".join(f"{name}={value:g}" for name, value in parameters.items())


def _signs(images: int) -> Iterator[Row]:
    """Yield what `SIGNS` reads of signs."""
    for quantizer in ("sign", "scaled_sign", "error_feedback(sign)"):
        for batch in (8, 32, 128):
            yield _active(quantizer, SIGNS, batch, images)


def _coarse(images: int) -> Iterator[Row]:
    """Yield what coarse and random rounding and pruning leave of batches of eight."""
    names = ("uniform:bits=4", "stochastic:bits=4", "terngrad", "topk:keep=0.1")
    for quantizer in (*names, "qsgd:levels=4,norm=l2"):
        for plan in PLANS.get(quantizer, (VALUES,)):
            yield _active(quantizer, plan, 8, images)


def _catalogue(images: int) -> Iterator[Row]:
    """Yield what every quantizer leaves of batches of 1, 8 and 32; fewer images, as it is dear."""
    for quantizer in EXAMPLES:
        for plan in PLANS.get(quantizer, (VALUES,)):
            for batch, share in ((1, 32), (8, 4), (32, 4)):
                yield _active(quantizer, plan, batch, images // share)


def _steps(images: int) -> Iterator[Row]:
    """Yield what is left of batches of eight after five local steps."""
    yield _active("sign", SIGNS, 8, images, steps=5)
    yield _active("none", VALUES, 8, images, steps=5)


def _passive(images: int) -> Iterator[Row]:
    """Yield what an honest server finds."""
    for quantizer in EXAMPLES:
        for batch in (1, 8, 32):
            count = max(batch, images // 8)
            yield Row(quantizer, "curious", PASSIVE, batch, count, model="lenet")


def _ares(images: int) -> Iterator[Row]:
    """Yield what activations of the first layer tell; of the model `cnn`, batches of eight."""
    for model, batches in (("mlp:activation=relu,width=1024", (1, 8, 32)), ("cnn", (8,))):
        for quantizer in ("none", "uniform:bits=8", "uniform:bits=4", "sign", "topk:keep=0.1"):
            plan = parse_plan("ares").for_quantizer(quantizer).spec
            for batch in batches:
                yield Row(quantizer, plan, "active_ares", batch, images, model=model)


SETS = {
    "signs": _signs,
    "coarse": _coarse,
    "steps": _steps,
    "catalogue": _catalogue,
    "passive": _passive,
    "ares": _ares,
}


@lru_cache
def _code() -> str:
    return code_version((__name__,))


def _jobs(row: Row, arguments: argparse.Namespace) -> Iterator[Job]:
    clients, most = row.images // row.batch, _CHUNK[row.batch]
    for first in range(0, clients, most):
        some = min(most, clients - first)
        yield Job(row, first, some, arguments.data_dir, arguments.seed)


def _kept(work: Path, job: Job) -> Path:
    return work / f"{job.key}.parquet"


def score_job(job: Job) -> pd.DataFrame:
    """Attack some clients and score the images: one row per private image."""
    torch.set_num_threads(1)
    row, seed = job.row, job.seed
    victims = Victims(job.data_dir, job.clients, job.first * row.batch, seed)
    public, truth = victims.public, victims.batches(row.work)
    model = ModelSpec(row.model, SHAPE, CLASSES)
    weights = _planted(row.plan, model, seed, job.data_dir)
    images, labels = (part.flatten(0, 1) for part in truth)
    sent = partial(observe, spec=model, weights=weights, server=row.plan)
    seen = sent(images, labels, row.quantizer, row.work)
    started = time.process_time()
    made = _attack(row.attack).reconstruct(seen, seed=seed, public=public)
    spent = time.process_time() - started
    scores = score(one_a_client(made), truth, public.images[-GALLERY:])
    return scores.assign(nbytes=seen[0].payload.nbytes, **{"CPU s": spent / len(scores)})


def _attack(specs: str) -> Attack:
    """Build an attack, or a suite of several that are joined by ``or``."""
    one, *others = specs.split(" or ")
    return suite(one, *others) if others else build_attack(one)


@lru_cache(maxsize=1)
def _planted(plan: str, model: ModelSpec, seed: int, data_dir: Path) -> Tensor:
    module = build_model(model, seed)
    given = {name: parameter.detach() for name, parameter in module.named_parameters()}
    weights = Layout.of(module).flatten(given)
    public = Victims(data_dir, 0, 0, seed).public.images
    return parse_plan(plan).weights(model, weights, public)


def _write(arguments: argparse.Namespace, jobs: dict[Row, Sequence[Job]]) -> None:
    lines = []
    for row, parts in jobs.items():
        files = [_kept(arguments.work, job) for job in parts]
        if files and all(path.exists() for path in files):
            scores = pd.concat([pd.read_parquet(path) for path in files])
            lines.append(_line(row, scores))
    if lines:
        write_csv(arguments.out, pd.DataFrame(lines).assign(commit=commit()))


def _line(row: Row, scores: pd.DataFrame) -> dict[str, object]:
    return {
        "quantizer": row.quantizer,
        "server": row.plan,
        "model": row.model,
        "attack": row.attack,
        "batch": row.batch,
        "local steps": row.steps,
        "images": len(scores),
        "bytes": int(scores["nbytes"].iloc[0]),
        "MSE < 1e-2 %": percent(scores.mse < 1e-2),
        "median MSE": f"{scores.mse.median():.2g}",
        "median PSNR dB": f"{scores.psnr.median():.1f}",
        "median SSIM": f"{scores.ssim.median():.2f}",
        "identified %": percent(scores.identified),
        "labels %": percent(scores.label_hit),
        "CPU s": f"{scores['CPU s'].sum():.0f}",
    }


if __name__ == "__main__":
    from benchmarks import malicious  # noqa: PLW0406 - not __main__

    malicious.main()  # whose jobs worker processes can import
