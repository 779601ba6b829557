"""The report of an audit: scores and gates of every victim, and the verdicts."""

from collections.abc import Callable, Sequence
from statistics import fmean

import pandas as pd
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from fl_sim.coding.entropy import entropy_coded_bytes
from fl_sim.observed.observations import Observation
from fl_sim.observed.reconstructions import Reconstruction
from results.assumptions import assumptions, lower_bounds
from results.scores.baselines import score_baselines
from results.scores.gates import CONSISTENCY_TOLERANCE, Truth
from results.scores.rows import compare_attacks
from results.scores.victims import score_victims
from results.tables.summary import results_table
from results.tables.terminal import print_results

OwnImages = Callable[[int, int], tuple[Tensor, Tensor]]
"""Maps round and partition to the images ``(n, C, H, W)`` and labels ``(n,)`` trained on.

A third value, if there is one, is the order of the images in each epoch, ``(epochs, n)``.
"""


def audit_scores(
    observations: Sequence[Observation],
    found: Sequence[Reconstruction],
    truth: OwnImages,
    public: Tensor,
) -> pd.DataFrame:
    """Score an audit: one row per private image and attack.

    Parameters
    ----------
    observations : sequence of Observation
        What was attacked: ``found.observations`` of `server.audit`.
    found : sequence of Reconstruction
        What the attacks made of it.
    truth : callable
        What a client trained on in a round, in the order of its batches.
    public : Tensor
        ``(m, C, H, W)`` public images, for identification and for the baselines.

    Returns
    -------
    DataFrame
        ``quantizer``, ``seed``, the columns of `score_victims`, ``strongest``.
    """
    seen = {(one.round, one.partition): one for one in observations}
    groups: dict[tuple[object, ...], list[Reconstruction]] = {}
    for one in found:
        source = seen[one.round, one.partition]
        key = (one.attack, one.round, source.payload.spec, source.model)
        groups.setdefault(key, []).append(one)
    frames = []
    for guesses in groups.values():
        sources = [seen[guess.round, guess.partition] for guess in guesses]
        batches = [truth(guess.round, guess.partition) for guess in guesses]
        private = Truth(*(torch.stack(parts) for parts in zip(*batches, strict=True)))
        frame = score_victims(sources, guesses, private, public)
        frame.insert(0, "quantizer", sources[0].payload.spec)
        frame.insert(1, "seed", 0)
        frames.append(frame)
    return compare_attacks(pd.concat(frames, ignore_index=True))


def audit_results(
    observations: Sequence[Observation], scores: pd.DataFrame, truth: OwnImages, public: Tensor
) -> pd.DataFrame:
    """Sum up an audit as `results.tables.summary.results_table` does a study, without accuracies.

    Parameters as `audit_scores`, whose result ``scores`` is.
    """
    victims = scores[["round", "partition"]].drop_duplicates().to_numpy()
    private = torch.cat([truth(int(round_), int(client))[0] for round_, client in victims])
    specs = list(dict.fromkeys(scores["quantizer"]))
    payloads = {s: [o.payload for o in observations if o.payload.spec == s] for s in specs}
    rows = [
        (
            s,
            0,
            1,
            float("nan"),
            sum(_bytes_of(o) for o in observations if o.payload.spec == s),
            len(payloads[s]),
        )
        for s in specs
    ]
    columns = ["quantizer", "seed", "round", "accuracy", "uplink_bytes", "updates"]
    return results_table(
        specs,
        history=pd.DataFrame(rows, columns=columns),
        scores=scores,
        baselines=score_baselines(private, public),
        entropy_coded={s: fmean(map(entropy_coded_bytes, payloads[s])) for s in specs},
        parameters=observations[0].payload.layout.size,
        server=observations[0].server,
    )


def _bytes_of(one: Observation) -> int:
    return one.payload.nbytes + (one.statistics.payload.nbytes if one.statistics else 0)


def print_audit(
    observations: Sequence[Observation],
    found: Sequence[Reconstruction],
    truth: OwnImages,
    public: Tensor,
    console: Console | None = None,
) -> pd.DataFrame:
    """Print the scores of every victim, the table of a study, and what was assumed.

    Then follows what makes the figures lower bounds, and which assumptions are wrong.

    The other parameters and the result are those of `audit_scores`; ``console`` is where to print.

    Examples
    --------
    With what `server.audit` found, the images of each client, and images that no client holds:

    >>> from results import print_audit
    >>> print_audit(  # doctest: +SKIP
    ...     found.observations, found, lambda round_, client: load_images(client), public
    ... )
    """
    console = console or Console()
    scores = audit_scores(observations, found, truth, public)
    console.print(_victim_table(scores))
    print_results(audit_results(observations, scores, truth, public), console)
    for heading, lines in (
        ("Assumed:", assumptions(observations)),
        ("More may be possible:", lower_bounds(observations)),
    ):
        if lines:
            console.print(Text("\n".join([heading, *(f"- {line}" for line in lines)]), style="dim"))
    for line in inconsistencies(scores):
        console.print(Text(line))
    return scores


def inconsistencies(scores: pd.DataFrame) -> list[str]:
    """Return a line for each client whose update `LocalWork` does not predict correctly."""
    wrong = scores[scores["inconsistency"] > CONSISTENCY_TOLERANCE]
    columns = ["round", "partition"]
    worst = wrong.groupby(columns, as_index=False)["inconsistency"].max()
    return [
        f"! round {row['round']:.0f}, client {row['partition']:.0f}: LocalWork predicts another "
        "update than the client sent; the difference is "
        f"{row['inconsistency']:.0%} of the largest value. Does the client use momentum, weight "
        "decay, augmentation, normalisation, another learning rate or number of steps, none of "
        "which LocalWork says? The attacks may find less "
        "than is possible."
        for _, row in worst.iterrows()
    ]


def _victim_table(scores: pd.DataFrame) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("round", "client", "attack", "PSNR", "labels", "status", "gates"):
        wordy = heading in ("attack", "status", "gates")
        table.add_column(heading, justify="left" if wordy else "right", overflow="fold")
    for _, rows in scores.groupby(["round", "partition", "attack"]):
        first = rows.iloc[0]
        figures = (f"{rows['psnr'].median():.1f}", f"{rows['labels_recovered'].mean():.0%}")
        names = (str(first[name]) for name in ("round", "partition", "attack"))
        table.add_row(*map(Text, (*names, *figures, first["status"], _gates(first))))
    return table


def _gates(row: "pd.Series") -> str:
    """Return the gates that a victim does not pass; see `results.scores.gates.examine`."""
    names = {"masked": "the truth has a lower loss", "unexplained": "the truth predicts more"}
    short = [text for name, text in names.items() if row[name]]
    if row["inconsistency"] > CONSISTENCY_TOLERANCE:
        short.append("another update was sent")
    return ", ".join(short) or "passed"
