"""The same command on other pictures makes its results anew."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fl_sim.data import datasets, partitions
from tests.commands import command

pytestmark = pytest.mark.slow

SMALL = [
    *("--dataset", "folder", "--rounds", "1", "--clients", "2", "--batch-size", "1"),
    *("--quantizers", "none", "--observe", "1", "--victims", "2", "--workers", "1", "--quiet"),
]


def draw(folder, seed):
    for loader in (datasets._load, datasets.load_splits):
        loader.cache_clear()  # as in a new process
    partitions.load_federation.cache_clear()
    rng = np.random.default_rng(seed)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(12):
            pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def run(data, out, attacks="dlg:iterations=3,restarts=0"):
    assert command(*SMALL, "--data-dir", data, "--attacks", attacks, "--out", out) == 0
    return pd.read_csv(out / "scores.csv")


def test_replaced_pictures_are_trained_on_attacked_and_scored(tmp_path):
    data = tmp_path / "data"
    draw(data, seed=0)
    former = run(data, tmp_path / "run")
    draw(data, seed=1)
    again, fresh = run(data, tmp_path / "run"), run(data, tmp_path / "fresh")
    pd.testing.assert_frame_equal(again, fresh)
    assert not again["mse"].equals(former["mse"])


def test_an_attack_mixes_no_results_of_other_pictures(tmp_path, capsys):
    data = tmp_path / "data"
    draw(data, seed=0)
    run(data, tmp_path / "run")
    draw(data, seed=1)
    status = command(
        *("attack", tmp_path / "run", "--attacks", "cell:iterations=3,restarts=0", "--quiet")
    )
    assert status == 1
    assert "1 of 1 trials were not attacked" in capsys.readouterr().err
