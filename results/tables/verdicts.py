"""What each row of the results shows, and what its reader must know to judge it."""

import pandas as pd

from fl_sim.plans import parse_plan
from results.scores.gates import SUCCESS_MSE
from results.tables.numbers import percent

VERDICTS: dict[str, str] = {
    "leaks": "half of the victims or more are recovered "
    f"(MSE below {SUCCESS_MSE:g}), or identified beyond chance",
    "partly leaks": "the median picture is closer than any featureless one, or more than a tenth "
    "of the victims are identified beyond chance",
    "nothing found": "the attack is shown to work, and found nothing",
    "not established": "nothing was found, but the attack is not shown to work: never read it as "
    "private",
}
"""What each verdict means; every table, page and document takes the words from here."""

STAR = "the attack is not shown to work on enough victims: a better one may find more"
"""What a star at a verdict means."""

CHANCES = ["identified_chance", "label_chance"]
"""What ``identified_rate`` and ``label_accuracy`` are for a blind guess."""


def verdict(row: "pd.Series") -> str:
    """Say in a word of `VERDICTS` what the strongest attack shows.

    What was found is found, whatever the gates say; that nothing was found counts only where
    they are passed. Of a rate of identification counts what is beyond chance: a gallery of one
    public image names half of the victims to anybody.
    """
    identified = _beyond_chance(row["identified_rate"], row["identified_chance"])
    if max(row["success_rate"], identified) >= 0.5:
        return "leaks"
    if row["mse_median"] < row["baseline_mse"] or identified > 0.1:
        return "partly leaks"
    return "nothing found" if row["established"] else "not established"


def _beyond_chance(rate: float, chance: float) -> float:
    """Return a rate corrected for guessing: 0 at chance, 1 where all is known."""
    return (rate - chance) / (1 - chance) if chance != 1 else 0.0


def starred(row: "pd.Series") -> str:
    """Return a row's verdict as it is shown: with a star where the figures are not established."""
    return str(row["verdict"]) + ("" if row["established"] else "*")


def definitions(results: pd.DataFrame) -> dict[str, str]:
    """Return what the verdicts of some results mean, and the star where one is shown."""
    shown = {word: text for word, text in VERDICTS.items() if word in set(results["verdict"])}
    return shown if results["established"].all() else shown | {"*": STAR}


def chance(results: pd.DataFrame) -> str:
    """Say what a blind guess reaches, in a sentence; nothing where nothing is attacked yet."""
    known = results[CHANCES].dropna().drop_duplicates()
    if known.empty:
        return ""
    identified, labels = (" to ".join(_ends(known[name])) for name in CHANCES)
    return f"Chance alone identifies {identified} of the victims and knows {labels} of the labels."


def _ends(rates: "pd.Series[float]") -> list[str]:
    """Return the least and the greatest rate as text, once if they read the same."""
    return list(dict.fromkeys(percent(rate) for rate in (rates.min(), rates.max())))


def server_plans(results: pd.DataFrame) -> str:
    """Say what the server is to its clients, in a sentence for each plan of some results."""
    plans = dict.fromkeys(results["server"])
    return " ".join(f"Server plan: {plan} ({parse_plan(plan).threat})." for plan in plans)
