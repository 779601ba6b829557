"""From the folder of a run to its scores, tables, curve and gallery.

In a notebook::

    from pathlib import Path
    from results.run_report import summarise
    summarise(Path("runs/default"))
"""

from pathlib import Path

import pandas as pd
import torch

from fl_sim.seeding import Purpose, numpy_rng
from results.curves import draw_curve
from results.gallery import GalleryRow, draw_gallery
from results.run_reader import RunReader
from results.tables import VICTIM, results_table, write_csv

GALLERY_VICTIMS = 8


def summarise(root: Path) -> pd.DataFrame:
    """Score a run and write ``scores.csv``, ``results.csv``, ``curve.png`` and ``gallery.png``.

    Parameters
    ----------
    root : Path
        Folder of a run. One that is not finished is summarised as far as it got.

    Returns
    -------
    DataFrame
        `results.tables.results_table`, also in ``results.csv``.

    Raises
    ------
    SettingsError
        If the folder is not that of a run.
    """
    run = RunReader(root)
    results = results_table(
        run.settings.quantizers,
        history=run.history,
        scores=run.scores,
        baselines=run.baselines,
        entropy_coded=run.entropy_coded,
        parameters=run.parameters,
    )
    write_csv(root / "scores.csv", run.scores)
    write_csv(root / "results.csv", results)
    draw_curve(results, root / "curve.png")
    _draw_gallery(run, results, root / "gallery.png")
    return results


def random_victims(scores: pd.DataFrame, count: int) -> pd.DataFrame:
    """Draw victims that every attacked quantizer has, by seed: never by hand, never the best.

    Returns
    -------
    DataFrame
        At most ``count`` rows with the columns `VICTIM`, in their own order.
    """
    strongest = scores[scores["strongest"]]
    holders = strongest.groupby(VICTIM)["quantizer"].nunique()
    shared = holders[holders == strongest["quantizer"].nunique()].index.to_frame(index=False)
    rng = numpy_rng(0, Purpose.VICTIMS, 0)
    chosen = rng.choice(len(shared), size=min(count, len(shared)), replace=False)
    return shared.iloc[sorted(chosen)]


def _draw_gallery(run: RunReader, results: pd.DataFrame, path: Path) -> None:
    victims = random_victims(run.scores, GALLERY_VICTIMS)
    if victims.empty:
        return
    strongest = run.scores[run.scores["strongest"]]
    rows = []
    for _, result in results[results["victims"] > 0].iterrows():
        mine = strongest[strongest["quantizer"] == result["quantizer"]]
        seen = victims.merge(mine, on=VICTIM, how="left")
        pictures = torch.stack([run.guess(row) for _, row in seen.iterrows()])
        rows.append(
            GalleryRow(result["quantizer"], result["verdict"], pictures, seen["mse"].tolist())
        )
    truth = torch.stack([run.victim(row) for _, row in victims.iterrows()])
    captions = [
        f"round {row.round}, client {row.partition}\nseed {row.seed}, image {row.image}"
        for row in victims.itertuples()
    ]
    draw_gallery(truth, captions, rows, path)
