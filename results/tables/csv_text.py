"""Tables as CSV files."""

from pathlib import Path

import pandas as pd

from fl_sim.storage.files import write_text


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table atomically; the same table gives the same bytes on every machine."""
    write_text(path, csv_text(frame))


def csv_text(frame: pd.DataFrame) -> str:
    """Return a table as CSV with six significant digits, safe to open in a spreadsheet."""
    texts = frame.select_dtypes(exclude=["number", "bool"]).map(_no_formula)
    plain = frame.assign(**{str(name): texts[name] for name in texts})
    return plain.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def _no_formula(cell: object) -> object:
    """Put an apostrophe before text that a spreadsheet would run as a formula; keep numbers."""
    if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
