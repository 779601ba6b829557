"""Whether the file of a job stands: made by nothing, other inputs, other code, or this code."""

import json

import pandas as pd
import pytest

from fl_sim.observed.reconstructions import save_reconstructions
from fl_sim.study.plan import MadeBy, ScoringJob, training_jobs
from fl_sim.study.runs import RunFolder
from fl_sim.study.settings import load_settings


def jobs(root, **overrides):
    """Return the jobs of a trial: its training, its first attack, and the scoring of that."""
    settings = load_settings(None, {"quantizers": "sign", "attacks": "dlg"} | overrides)
    (training,) = training_jobs(settings, RunFolder(root))
    attack = training.attacks()[0]
    return training, attack, ScoringJob(attack, "")


def write_training(training):
    training.target.parent.mkdir(exist_ok=True)
    training.target.write_text(json.dumps({"key": training.key, "history": []}))


def write_scores(scoring):
    frame = pd.DataFrame({"mse": [0.5]})
    frame.attrs["key"] = scoring.key
    scoring.target.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(scoring.target)


@pytest.fixture
def done(tmp_path):
    """The jobs of a trial, with a file of this code for each."""
    training, attack, scoring = jobs(tmp_path)
    write_training(training)
    save_reconstructions(attack.target, [], attack.key)
    write_scores(scoring)
    return training, attack, scoring


def made_by(planned):
    return [job.made_by() for job in planned]


def test_without_files_nothing_stands(tmp_path):
    assert made_by(jobs(tmp_path)) == [MadeBy.NOTHING] * 3
    assert not any(job.stands() for job in jobs(tmp_path))


def test_files_of_this_code_stand_and_a_training_needs_its_observations_too(done):
    assert made_by(done) == [MadeBy.THIS_CODE] * 3
    assert [job.stands() for job in done] == [False, True, True]


def test_a_file_that_cannot_be_read_counts_as_missing(done, caplog):
    for job in done:
        job.target.write_bytes(job.target.read_bytes()[:-5])
    assert made_by(done) == [MadeBy.NOTHING] * 3
    for job in done:
        assert job.target.name in caplog.text


def test_other_settings_need_all_files_again(done, tmp_path):
    other = jobs(tmp_path, server_learning_rate="0.3")
    assert [job.target for job in other] == [job.target for job in done]
    assert made_by(other[:2]) == [MadeBy.OTHER_INPUTS] * 2


def test_other_code_is_told_from_other_inputs(done, monkeypatch):
    monkeypatch.setattr("fl_sim.study.runs.code_version", lambda entries: "other")
    assert made_by(done) == [MadeBy.OTHER_CODE] * 3
    assert not any(job.stands() for job in done)


def test_an_attack_is_void_once_other_code_trained_the_trial_again(done, monkeypatch):
    training, attack, _ = done
    with monkeypatch.context() as patch:
        patch.setattr("fl_sim.study.runs.code_version", lambda entries: "other")
        write_training(training)
    assert training.made_by() is MadeBy.OTHER_CODE
    assert attack.made_by() is MadeBy.OTHER_INPUTS
