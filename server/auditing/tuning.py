"""Tune attacks on held-out victims: public images, encoded and attacked as a client's are."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import pandas as pd
import tomli_w
import torch
from torch import Tensor

from attacker.choice import with_evidence
from attacker.presets import build_attack
from fl_sim.data.public_images import PublicImages
from fl_sim.engines.tasks import run_tasks
from fl_sim.observed.observations import Observation, load_observations, round_path
from fl_sim.observed.reconstructions import Reconstruction
from fl_sim.quantizers import parse_quantizer
from fl_sim.seeding import Purpose, numpy_rng, torch_rng
from fl_sim.specs import Spec
from fl_sim.storage.files import write_text
from fl_sim.storage.progress import progress_bar
from fl_sim.study.plan import AttackJob, training_jobs
from fl_sim.study.runs import RunFolder
from fl_sim.study.settings import Settings, SettingsError, split_specs
from fl_sim.study.trials import Trial, trials_of
from fl_sim.updates.local_update import Update, flat_model, local_reply, one_hot
from server.auditing.jobs import check_specs

Scorer = Callable[[Tensor, Tensor, Tensor, Tensor], pd.DataFrame]
"""Maps images, labels, true images, true labels of a batch to scores with a ``psnr`` column."""

Sweep = Mapping[str, Sequence[str]]
"""Values tried for each parameter of an attack."""


@dataclass(frozen=True)
class TuningJob:
    """One variant of a planned attack, run on held-out victims."""

    planned: AttackJob
    spec: str

    @property
    def held_out(self) -> "HeldOut":
        """The victims, and the public images that are left."""
        return hold_out(self.planned.trial, self.planned.training.settings.audit.victims)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Public images, split into the victims of tuning and those left to learned attacks.

    Attributes
    ----------
    images : Tensor
        ``(victims, n, C, H, W)``, one private batch for each victim.
    labels : Tensor
        ``(victims, n)``.
    public : PublicImages
        All others.
    """

    images: Tensor
    labels: Tensor
    public: PublicImages


def hold_out(trial: Trial, victims: int) -> HeldOut:
    """Draw victims by seed from the public images, which no client and no test set holds.

    Raises
    ------
    SettingsError
        If the victims would take all public images.
    """
    public, count = trial.federation.splits.public, victims * trial.work.images
    if count >= len(public):
        allowed = f"fewer than the {len(public)} public images, in batches of {trial.work.images}"
        raise SettingsError("victims", victims, allowed)
    order = numpy_rng(trial.seed, Purpose.TUNING).permutation(len(public))
    chosen, others = public.take(order[:count]), public.take(order[count:])
    images = chosen.pixels()
    return HeldOut(
        images.reshape(victims, trial.work.images, *images.shape[1:]),
        chosen.labels.reshape(victims, trial.work.images),
        PublicImages(others.pixels(), others.labels),
    )


def variants(attack: str, sweep: Sweep) -> list[str]:
    """Return the spec as it is, and with every combination of the swept values."""
    spec = Spec.parse(attack)
    edits = (dict(zip(sweep, values, strict=True)) for values in product(*sweep.values()))
    return list(dict.fromkeys([attack, *(str(spec.edited(edit)) for edit in edits if edit)]))


def parse_sweep(texts: Iterable[str]) -> dict[str, list[str]]:
    """Parse the values to try from texts such as ``tv=1e-4,1e-3`` or ``tv=1e-4..1e-1/log4``.

    Raises
    ------
    SettingsError
        If a text is not a name and values.
    """
    sweep: dict[str, list[str]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        try:
            sweep[name] = [value for value in split_specs(values) if value]
        except ValueError as error:
            raise SettingsError("sweep", text, str(error)) from error
        if not sweep[name]:
            raise SettingsError("sweep", text, "a parameter and its values, as in tv=1e-4,1e-3")
    return sweep


def tune(settings: Settings, folder: RunFolder, sweep: Sweep, score: Scorer) -> pd.DataFrame:
    """Sweep the attacks of a study over held-out victims and write the winners for each quantizer.

    A winner has the highest mean PSNR over victims, rounds and seeds; the attack as it is competes
    too. The winners are written to ``tuned.toml`` in the run's folder, which the setting ``tuned``
    reads.

    Parameters
    ----------
    settings : Settings
        Of the run; ``audit.attacks`` are swept, on ``audit.victims`` held-out victims a round.
    folder : RunFolder
        Of the run; its observations hold the weights of each round.
    sweep : Sweep
        Values to try.
    score : Scorer
        Scores a batch against its truth, which tuning knows.

    Returns
    -------
    DataFrame
        ``attack``, ``quantizer``, ``spec``, ``psnr`` (mean, dB), ``chosen``.
    """
    jobs = tuning_jobs(settings, folder, sweep)
    rows: list[tuple[str, str, str, float]] = []
    with progress_bar("Tuning", len(jobs)) as advance:
        for job, made in run_tasks(run_tuning, jobs, settings.engine, settings.engine.device):
            trial = job.planned.trial
            key = (job.planned.attack, trial.quantizer, job.spec)
            rows += [(*key, psnr) for psnr in _psnr(made, job, score)]
            advance(1, f"{job.spec} on {trial.name}")
    frame = pd.DataFrame(rows, columns=["attack", "quantizer", "spec", "psnr"])
    tried = frame.groupby(["attack", "quantizer", "spec"])["psnr"].mean().reset_index()
    best = tried.groupby(["attack", "quantizer"])["psnr"].idxmax()
    tried["chosen"] = tried.index.isin(best)
    write_text(folder.tuned_file, tomli_w.dumps(_winners(tried)))
    return tried


def tuning_jobs(settings: Settings, folder: RunFolder, sweep: Sweep) -> list[TuningJob]:
    """Return every variant of every attack on every trial and group of rounds.

    Raises
    ------
    SettingsError
        If an attack or a variant does not parse, there are too few public images, or the server
        sees sums.
    """
    aggregation = settings.training.aggregation
    if aggregation != "plain":
        allowed = "plain: held-out victims are encoded one by one, not added up"
        raise SettingsError("aggregation", aggregation, allowed)
    check_specs("attacks", settings.audit.attacks)
    specs = {attack: variants(attack, sweep) for attack in settings.audit.attacks}
    for tried in specs.values():
        check_specs("sweep", tried)
    for trial in trials_of(settings):
        hold_out(trial, settings.audit.victims)
    return [
        TuningJob(planned, spec)
        for training in training_jobs(settings, folder)
        for planned in training.attacks()
        for spec in specs[planned.attack]
    ]


def run_tuning(job: TuningJob) -> list[Reconstruction]:
    """Attack the held-out victims of a job; return nothing if the attack does not apply."""
    held_out, attack = job.held_out, with_evidence(build_attack(job.spec))
    observations = list(observe(job, held_out))
    if not attack.applies(observations):
        return []
    seed, device = job.planned.trial.seed, job.planned.training.settings.engine.device
    return attack.reconstruct(observations, seed=seed, public=held_out.public, device=device)


def observe(job: TuningJob, held_out: HeldOut) -> Iterator[Observation]:
    """Yield what the server would see of clients that hold the held-out images.

    The weights are those of the observed rounds; victims are numbered as partitions, from 0. The
    residual of error feedback starts at zero; it is carried over if rounds share their images.
    """
    residuals: dict[int, Tensor | None] = {}
    trial = job.planned.trial
    quantizer = parse_quantizer(trial.quantizer)
    for server_round in job.planned.rounds:
        path = round_path(job.planned.folder.observations, trial.name, server_round)
        seen = load_observations(path)[0]
        model = flat_model(seen.model)
        batches = zip(held_out.images, held_out.labels, strict=True)
        for victim, (images, labels) in enumerate(batches):
            targets = one_hot(labels, seen.model.classes)
            with torch.no_grad():
                sent = torch.zeros(0) if seen.statistics is None else seen.statistics.sent
                facts = (seen.work, seen.weights, sent, images, targets)
                reply = local_reply(model, *facts)
            rng = torch_rng(trial.seed, Purpose.TUNING, server_round, victim)
            carried = residuals.get(victim) if seen.work.fixed_batch else None
            payload, residuals[victim] = quantizer.transmit(
                Update(reply.update, model.layout), carried, rng
            )
            statistics = seen.statistics
            if statistics is not None:
                change = Update(reply.statistics, model.statistics)
                told = parse_quantizer(statistics.payload.spec).encode(change, rng)
                statistics = replace(statistics, payload=told)
            yield replace(
                seen,
                round=server_round,
                partition=victim,
                payload=payload,
                statistics=statistics,
            )


def _psnr(made: Sequence[Reconstruction], job: TuningJob, score: Scorer) -> Iterator[float]:
    """Yield the PSNR of every image of the victims of a job."""
    held_out = job.held_out
    for one in made:
        truth = held_out.images[one.partition], held_out.labels[one.partition]
        yield from score(one.images, one.labels, *truth)["psnr"]


def _winners(tried: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Return the chosen specs by attack and quantizer."""
    found: dict[str, dict[str, str]] = {}
    for attack, quantizer, spec in tried[tried["chosen"]][["attack", "quantizer", "spec"]].values:
        found.setdefault(attack, {})[quantizer] = spec
    return found
