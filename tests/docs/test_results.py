import re

import pandas as pd
import pytest
import torch

from benchmarks.bounds.ladder import NOISES, violations
from docs.render.__main__ import ROOT
from docs.render.results import DEFAULT_STUDY
from docs.render.tables import MADE_BY
from results.scores.scoring import score_batches
from results.tables.verdicts import STAR, VERDICTS


def test_the_readme_defines_the_verdicts_as_the_code_does():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"`{word}`: {meaning}." in text for word, meaning in VERDICTS.items())
    assert f"A star: {STAR}." in text


@pytest.mark.parametrize("file", ["results.csv", "scores.csv"])
def test_every_column_of_a_run_is_explained(file, default_columns):
    text = (ROOT / "docs" / "reference" / "outputs.md").read_text(encoding="utf-8")
    section = text.split(f"## {file}")[1].split("\n## ")[0]
    named = set(re.findall(r"`([\w*]+)`", section))
    bounds = ("_low", "_high") if "*_low" in named else ()
    missing = [c for c in default_columns[file] if c not in named and not c.endswith(bounds)]
    assert missing == []


@pytest.fixture(scope="module")
def default_columns():
    """Return the columns that the code gives to the tables of a run."""
    images = torch.rand(2, 1, 1, 8, 8)
    labels = torch.zeros(2, 1, dtype=torch.long)
    scored = score_batches(images, labels, images, labels, images[:, 0])
    kept = pd.read_csv(DEFAULT_STUDY).drop(columns=list(MADE_BY), errors="ignore")
    chosen = ("quantizer", "seed", "round", "partition", "attack", "strongest")
    return {"results.csv": list(kept), "scores.csv": [*scored.drop(columns="batch"), *chosen]}


def test_no_attack_of_the_ladder_is_beyond_a_bound_that_is_a_theorem():
    made = pd.read_csv(ROOT / "docs" / "results" / "guarantees.csv")
    assert set(made["noise"]) == set(NOISES)
    assert violations(made).empty
    assert len(violations(made.assign(identified_bound=0.0))) > 0
