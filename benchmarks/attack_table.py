"""What attacks recover from quantized updates of CIFAR images: docs/results/attacks/table.csv.

Each attack has a row, and so has the choice among all of a trial's attacks by evidence, with the
best guess that the truth would choose. What is done is kept below ``--work``: the same command
continues. The file is written whenever a trial is complete.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from attacker.presets import build_attack
from benchmarks.attack_trials import (
    GALLERY,
    Job,
    Trial,
    Victims,
    argument_parser,
    medians,
    percent,
    score_job,
    victims_of,
)
from benchmarks.provenance import commit
from fl_sim.engines.tasks import run_tasks
from fl_sim.storage.files import write_bytes
from fl_sim.storage.fingerprint import code_version
from fl_sim.study.settings import EngineSettings
from fl_sim.updates.local_update import LocalWork
from results.scores.alone import identified_alone
from results.scores.baselines import bar, mean_colour, score_baselines
from results.scores.gates import doubt
from results.scores.rows import compare_attacks
from results.scores.scoring import psnr, score_images
from results.tables.csv_text import write_csv
from results.tables.verdicts import starred, verdict

DLG = "dlg:iterations=600,restarts=1"
SEARCHES = ("scaled", "cell", "synthetic_cell")
STEPS = LocalWork("delta", learning_rate=0.1, local_steps=5)
BASELINE = "mean colour"
CHOSEN = "chosen"
WITH_PUBLIC = "chosen, with public images"
FACTS = ("labels %", "stalled", "victims", "evaluations", "CPU s", "best known dB")
"""Columns of attacks, beside their errors."""
CHOICE = ("chosen", "verdict", "doubt")
"""Columns of what is chosen among the attacks of a trial."""

_FIRST = {  # further attacks on one image a client at the first weights, by quantizer
    "none": ("rgap",),
    "uniform:bits=8": (),
    "uniform:bits=4": (),
    "uniform:levels=16": ("inverting_gradients",),
    "stochastic:levels=16": (),
    "stochastic:bits=2": (),
    "absmax:bits=2": (),
    "sign": ("synthetic", "learned_cell"),
    "scaled_sign": (),
    "terngrad": (),
    "gaussian:sigma=0.1": (),
    "gaussian:sigma=100": (),
    "qsgd:levels=4,norm=l2": (),
    "topk:keep=0.1": (),
    "error_feedback(sign)": (),
}
_TRAINED = ("none", "uniform:bits=4", "stochastic:bits=2", "sign", "terngrad")
_BATCH = ("none", "uniform:bits=4", "sign", "terngrad")
_STEPS = ("none", "uniform:bits=4", "terngrad")
_SHUFFLED = ("uniform:bits=4", "sign", "terngrad")
_AVERAGED = ("stochastic:bits=2", "error_feedback(scaled_sign)")

TRIALS = (
    *(Trial(name, (DLG, *SEARCHES, *more)) for name, more in _FIRST.items()),
    *(Trial(name, (DLG, *SEARCHES), trained=True) for name in _TRAINED),
    *(Trial(name, ("scaled", "cell"), LocalWork(batch_size=4)) for name in _BATCH),
    *(Trial(name, ("scaled:restarts=1", "cell:restarts=1"), STEPS) for name in _STEPS),
    *(Trial(name, ("averaging",), LocalWork(fixed_batch=True), rounds=16) for name in _AVERAGED),
    *(Trial(name, ("scaled", "cell"), shuffled=True) for name in _SHUFFLED),
)


def main() -> None:
    arguments = parser().parse_args()
    trials, victims = chosen_trials(arguments), victims_of(arguments)
    jobs = [Job(trial, name, victims) for trial in trials for name in trial.attacks]
    left = [job for job in jobs if not _kept(arguments, job).exists()]
    print(f"{len(jobs) - len(left)} of {len(jobs)} attacks are done", file=sys.stderr)
    engine = EngineSettings(workers=arguments.workers)
    for job, scores in run_tasks(score_job, left, engine):
        write_bytes(_kept(arguments, job), scores.to_parquet(index=False))
        spent = f"{scores['CPU s'].iloc[0]:.0f} CPU s"
        print(job.trial.quantizer, job.trial.setting, job.attack, spent, sep="; ", file=sys.stderr)
        _write(arguments, trials, victims)
    _write(arguments, trials, victims)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argument_parser(__doc__)
    made.add_argument("--out", type=Path, default=Path("docs/results/attacks/table.csv"))
    made.add_argument("--work", type=Path, default=Path("runs/attack_table"))
    made.add_argument("--workers", type=int, default=1, help="0: one per core")
    made.add_argument("--only", nargs="+", metavar="QUANTIZER", help="rows of the table")
    rows = made.add_mutually_exclusive_group()
    rows.add_argument("--plain", action="store_true", help="rows of one image, first weights")
    rows.add_argument("--rest", action="store_true", help="rows of all other settings")
    made.add_argument(
        "--trial", nargs="+", metavar=("QUANTIZER", "ATTACK"), help="this instead of the table's"
    )
    made.add_argument("--edit", default="", help="of every attack, such as iterations=3")
    return made


def chosen_trials(arguments: argparse.Namespace) -> list[Trial]:
    """Return the trials that the command line asks for."""
    if arguments.trial:
        quantizer, *attacks = arguments.trial
        return [Trial(quantizer, tuple(attacks))]
    hidden = arguments.plain, arguments.rest
    listed = [one for one in TRIALS if not hidden[not one.setting]]
    chosen = [one for one in listed if not arguments.only or one.quantizer in arguments.only]
    if not chosen:
        known = ", ".join(dict.fromkeys(one.quantizer for one in TRIALS))
        raise SystemExit(f"--only {' '.join(arguments.only)}: none of {known}")
    return [replace(one, attacks=_edited(one.attacks, arguments.edit)) for one in chosen]


def _edited(attacks: Sequence[str], edit: str) -> tuple[str, ...]:
    """Return attacks with further parameters; those that are given already are replaced."""
    if not edit:
        return tuple(attacks)
    return tuple(dict.fromkeys(f"{one.partition(':')[0]}:{edit}" for one in attacks))


def _kept(arguments: argparse.Namespace, job: Job) -> Path:
    work: Path = arguments.work
    return work / f"{job.key}.parquet"


def _write(arguments: argparse.Namespace, trials: Sequence[Trial], victims: Victims) -> None:
    """Write the rows of all trials whose attacks are done."""
    scored: dict[Trial, pd.DataFrame] = {}
    for trial in trials:
        files = [_kept(arguments, Job(trial, name, victims)) for name in trial.attacks]
        if all(file.exists() for file in files):
            scored[trial] = pd.concat(map(pd.read_parquet, files), ignore_index=True)
    rows = [row for trial in scored for row in _rows(trial, victims, scored)]
    if rows:
        asked = f"--trial {' '.join(arguments.trial)}" if arguments.trial else ""
        asked += " --plain" if arguments.plain else ""
        asked += " --rest" if arguments.rest else ""
        size = f"--victims {victims.count} --skip {victims.skip}"
        made_by = {"commit": commit(), "code": code_version(("benchmarks.attack_table",))}
        command = " ".join(f"python -m benchmarks.attack_table {size} {asked}".split())
        write_csv(arguments.out, pd.DataFrame(rows).assign(**made_by, command=command))


def _rows(
    trial: Trial, victims: Victims, scored: Mapping[Trial, pd.DataFrame]
) -> Iterator[dict[str, object]]:
    """Yield the rows of one trial: a baseline, each attack, and what is chosen among them."""
    scores = scored[trial]
    public = {name for name in trial.attacks if build_attack(name).needs_public}
    constant, least = _featureless(victims, trial.work)

    def row(
        attack: str, own: pd.DataFrame, every: pd.DataFrame = scores, *, attacked: bool = True
    ) -> dict[str, object]:
        head = {"quantizer": trial.quantizer, "setting": trial.setting, "images": trial.work.images}
        facts = _facts(own, victims.count) if attacked else dict.fromkeys(FACTS, "")
        known = attack in (CHOSEN, WITH_PUBLIC)
        choice = _choice(own, every, least, _success_on_none(trial, scored)) if known else {}
        return head | {"attack": attack} | medians(own) | facts | dict.fromkeys(CHOICE, "") | choice

    yield row(BASELINE, constant, attacked=False)
    for name in trial.attacks:
        yield row(name, scores[scores["attack"] == name])
    private = compare_attacks(scores[~scores["attack"].isin(public)])
    yield row(CHOSEN, private[private["strongest"]], private)
    if public:
        compared = compare_attacks(scores)
        yield row(WITH_PUBLIC, compared[compared["strongest"]])


def _facts(own: pd.DataFrame, victims: int) -> dict[str, object]:
    spent = own.groupby("attack")["CPU s"].first().sum()
    values = (
        percent(own["labels_recovered"]),
        int((own["status"] != "converged").sum()),
        victims,
        f"{own['evaluations'].mean():.0f}",
        f"{spent:.0f}",
        f"{np.median(psnr(own['mse_best_known'].to_numpy())):.1f}",
    )
    return dict(zip(FACTS, values, strict=True))


def _choice(
    own: pd.DataFrame, every: pd.DataFrame, least: float, success_on_none: float | None
) -> dict[str, object]:
    """Return what a row of the results says of the strongest attack, and which attacks it is."""
    reason = doubt(own, success_on_none)
    facts: dict[str, object] = {
        "success_rate": own["recovered"].mean(),
        "identified_rate": own["identified"].mean(),
        "identified_chance": own["identified_chance"].mean(),
        "mse_median": own["mse"].median(),
        "baseline_mse": least,
        "established": not reason,
        **identified_alone(every),
    }
    facts["verdict"] = verdict(pd.Series(facts))
    counts = own["attack"].value_counts()
    chosen = ", ".join(f"{name} {counts[name]}" for name in counts.index)
    return dict(zip(CHOICE, (chosen, starred(pd.Series(facts)), reason), strict=True))


def _success_on_none(trial: Trial, scored: Mapping[Trial, pd.DataFrame]) -> float | None:
    """Return the share recovered without a quantizer in the same setting, but not shuffled."""
    for other, scores in scored.items():
        same = (other.work, other.rounds, other.trained) == (trial.work, 1, trial.trained)
        if other.quantizer == "none" and same and not other.shuffled:
            compared = compare_attacks(scores)
            return float(compared.loc[compared["strongest"], "recovered"].mean())
    return None


@lru_cache
def _featureless(victims: Victims, work: LocalWork) -> tuple[pd.DataFrame, float]:
    """Return scores of each victim's mean colour, and the MSE of the best featureless image."""
    images, gallery = victims.batches(work).images.flatten(0, 1), victims.public.images[-GALLERY:]
    constant = score_images(mean_colour(images, gallery), images, gallery)
    return constant, bar(score_baselines(images, gallery))


if __name__ == "__main__":
    main()
