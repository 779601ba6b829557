"""The verdict of each row of the results, and the sentences that explain the table."""

from collections.abc import Iterable
from math import nan

import pandas as pd

from fl_sim.plans import parse_plan
from results.scores.gates import SUCCESS_MSE
from results.tables.numbers import percent

VERDICTS: dict[str, str] = {
    "leaks": "half of the victims or more are recovered "
    f"(MSE below {SUCCESS_MSE:g}), or identified beyond chance",
    "partly leaks": "the median reconstruction is closer than every featureless image, or more "
    "than a tenth of the victims are identified beyond chance, if only by one attack that was not "
    "chosen",
    "bounded": "nothing was found, and no attack of any kind can identify more than a tenth of the "
    "victims beyond chance",
    "nothing found": "the attack is shown to work and found nothing",
    "not established": "nothing was found, but the attack is not shown to work: do not read it "
    "as private",
}
"""What each verdict means. Tables, pages and documents show these texts."""

STAR = "the attack is not shown to work on enough victims: a better one may find more"
"""What a star at a verdict means."""

BEST_KNOWN = (
    "PSNR of the best guess of all attacks, which only the private images can choose; no verdict "
    "uses it"
)
"""What stands beside the figure of the strongest attack, in the column ``best``."""

CHANCES = ["identified_chance", "label_chance"]
"""What ``identified_rate`` and ``label_accuracy`` are for a blind guess."""


GUARANTEES = ["epsilon", "delta", "identified_bound", "mse_bound"]
"""What is guaranteed against any attacker; missing where nothing is."""


def verdict(row: "pd.Series") -> str:
    """Return the key of `VERDICTS` that describes what the strongest attack found.

    A leak counts even if a gate fails. Finding nothing counts only if all gates pass, or if a
    guarantee bounds what any attack can find. Rates of
    identification are corrected for chance: with one public image, a blind guess identifies half
    of the victims. What one attack identifies counts as well where another was chosen.
    """
    identified = _beyond_chance(row["identified_rate"], row["identified_chance"])
    if max(row["success_rate"], identified) >= 0.5:
        return "leaks"
    alone = _beyond_chance(row.get("identified_alone", nan), row["identified_chance"])
    if row["mse_median"] < row["baseline_mse"] or identified > 0.1 or alone > 0.1:
        return "partly leaks"
    if _bounded(row):
        return "bounded"
    return "nothing found" if row["established"] else "not established"


def _bounded(row: "pd.Series") -> bool:
    most, chance = row.get("identified_bound", nan), row["identified_chance"]
    return bool(chance < 1 and _beyond_chance(most, chance) <= 0.1)


def _beyond_chance(rate: float, chance: float) -> float:
    """Correct a rate for guessing: 0 at chance, 1 if every victim is identified."""
    return (rate - chance) / (1 - chance) if chance != 1 else 0.0


def starred(row: "pd.Series") -> str:
    """Return a row's verdict, with a star if its privacy figures are not established.

    A bound holds whether or not the attack works, so it has no star.
    """
    return str(row["verdict"]) + ("" if _sure(row) else "*")


def _sure(row: "pd.Series") -> bool:
    return bool(row["established"]) or row["verdict"] == "bounded"


def definitions(results: pd.DataFrame) -> dict[str, str]:
    """Return the meaning of each verdict in some results, and of the star if one is shown."""
    shown = {word: text for word, text in VERDICTS.items() if word in set(results["verdict"])}
    sure = all(_sure(row) for _, row in results.iterrows())
    return shown if sure else shown | {"*": STAR}


def chance(results: pd.DataFrame) -> str:
    """Return a sentence on what a blind guess reaches; empty if nothing was attacked yet."""
    known = results[CHANCES].dropna().drop_duplicates()
    if known.empty:
        return ""
    identified, labels = (" to ".join(_ends(known[name])) for name in CHANCES)
    return f"Chance alone identifies {identified} of the victims and knows {labels} of the labels."


def guaranteed(results: pd.DataFrame) -> str:
    """Return a sentence on what is guaranteed in some results; empty if nothing is."""
    if "epsilon" not in results or results["epsilon"].isna().all():
        return ""
    delta = ", ".join(f"{one:g}" for one in results["delta"].dropna().unique())
    return (
        "Epsilon: of one client (with example_clip, of one image) over the whole training, against "
        f"the server, at delta {delta}. "
        "Id. <=: the most that any attack can identify, in percent."
    )


def _ends(rates: "pd.Series[float]") -> list[str]:
    """Return the smallest and the largest rate as text, or one text if both are the same."""
    return list(dict.fromkeys(percent(rate) for rate in (rates.min(), rates.max())))


def server_plans(results: pd.DataFrame) -> str:
    """Return what the server does in some results: a sentence a plan, and one if it sees sums."""
    plans = dict.fromkeys(results["server"])
    known: Iterable[str] = results.get("aggregation", default=())  # not in former tables
    sums = [one for one in dict.fromkeys(known) if one != "plain"]
    sentences = [f"Server plan: {plan} ({parse_plan(plan).threat})." for plan in plans]
    if sums:
        sentences.append(f"With {', '.join(sums)} it sees the sum of its clients' updates alone.")
    return " ".join(sentences)
