import io

import pandas as pd
import pytest

from results.tables.csv_text import csv_text, write_csv
from tests.results.tables.table_cases import NONE, SIGN, history, study, table


def test_the_same_table_gives_the_same_bytes(tmp_path):
    scores, trained = study(NONE, SIGN), history(none=[0.9, 0.8], sign=[0.8, 0.7])
    for name in ("a", "b"):
        write_csv(tmp_path / name, table(scores, trained))
    written = (tmp_path / "a").read_bytes()
    assert written == (tmp_path / "b").read_bytes()
    assert b"\r" not in written
    again = pd.read_csv(io.BytesIO(written))
    assert again.loc[1, "mse_median"] == pytest.approx(0.2, rel=1e-5)


def test_no_text_of_a_csv_is_a_formula_and_numbers_stay():
    texts = ['=HYPERLINK("http://x")', "+1+1", "-a", "@a", "\t=1", "-2.5", "topk:keep=0.1", None]
    frame = pd.DataFrame({"run": texts, "dB": [-1.5] * 8, "psnr": -3, "star": True})
    read = pd.read_csv(io.StringIO(csv_text(frame)))
    expected = ["'" + text for text in texts[:5]] + ["-2.5", "topk:keep=0.1"]
    assert read["run"].tolist()[:-1] == expected
    assert pd.isna(read["run"].iloc[-1])
    assert (read["dB"].unique(), read["psnr"].unique()) == ([-1.5], [-3])
    assert frame["run"].tolist()[:-1] == texts[:-1]
