import pytest
import torch

import run_simulation
from fl_sim.study.plan import training_jobs
from fl_sim.study.runs import RunFolder
from fl_sim.study.settings import SettingsError, load_settings
from fl_sim.study.study import load_study
from fl_sim.study.trials import trials_of
from results.scores.scoring import score_batch
from server import study
from server.auditing import tuning

ATTACK = "cell:iterations=8,warmup=0,restarts=0"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny trained study, not attacked."""
    small = load_study(
        None,
        {
            **{"quantizers": "none,sign", "attacks": ATTACK, "victims": "2", "workers": "1"},
            **{"clients": "2", "rounds": "2", "limit": "200", "observe": "first,last"},
        },
    )
    root = tmp_path_factory.mktemp("run")
    (folder,) = small.create(root)
    study.train(small, root)
    return small.points[0].settings, folder


def rows(images):
    return {tuple(row) for row in (images.flatten(1) * 255).round().int().tolist()}


def test_held_out_victims_belong_to_nobody(run):
    (trial, _), splits = trials_of(run[0]), trials_of(run[0])[0].federation.splits
    held_out = tuning.hold_out(trial, 5)
    assert held_out.images.shape == (5, 1, 1, 8, 8)
    victims = rows(held_out.images.flatten(0, 1))
    assert victims <= rows(splits.public.pixels())
    assert not victims & (rows(splits.train.pixels()) | rows(splits.test.pixels()))
    assert not victims & rows(held_out.public.images)
    assert len(held_out.public.images) == len(splits.public) - 5
    again = tuning.hold_out(trial, 5)
    assert torch.equal(again.images, held_out.images)


def test_too_many_victims_are_refused(run):
    with pytest.raises(SettingsError, match="fewer than the 20 public images"):
        tuning.hold_out(trials_of(run[0])[0], 20)


def test_variants_are_the_attack_itself_and_every_combination():
    sweep = tuning.parse_sweep(["tv=0.1,1", "restarts=2"])
    assert tuning.variants("cell", sweep) == [
        *("cell", "cell:tv=0.1,restarts=2", "cell:tv=1,restarts=2")
    ]
    assert tuning.variants("cell:box=0", {"tv": ["1"]}) == ["cell:box=0", "cell:box=0,tv=1"]
    assert tuning.variants("cell", {}) == ["cell"]
    assert tuning.variants("cell:tv=0", {"tv": ["1"]}) == ["cell:tv=0", "cell:tv=1"]


@pytest.mark.parametrize("text", ["tv", "tv="])
def test_a_sweep_without_values_is_refused(text):
    with pytest.raises(SettingsError, match="sweep = "):
        tuning.parse_sweep([text])


def test_an_unknown_parameter_is_refused_before_any_work(run):
    with pytest.raises(SettingsError, match=r"sweep = .*tvv"):
        tuning.tune(*run, {"tvv": ["1"]}, score_batch)
    assert not run[1].tuned_file.exists()


def test_an_attack_that_does_not_parse_is_refused_as_such(run):
    settings, folder = run
    audit = settings.audit.model_copy(update={"attacks": ("cell:tv",)})
    wrong = settings.model_copy(update={"audit": audit})
    with pytest.raises(SettingsError, match=r"attacks = 'cell:tv': .*name=value"):
        tuning.tune(wrong, folder, {"tv": ["1"]}, score_batch)


def test_victims_are_observed_at_the_weights_of_the_round(run):
    settings, folder = run
    job = tuning.tuning_jobs(settings, folder, {})[0]
    seen = list(tuning.observe(job, tuning.hold_out(job.planned.trial, 2)))
    assert [(o.round, o.partition, o.payload.spec) for o in seen] == [
        *((1, 0, "none"), (1, 1, "none"), (2, 0, "none"), (2, 1, "none"))
    ]
    assert not torch.equal(seen[0].weights, seen[2].weights)


def test_the_best_variant_wins_and_is_what_the_audit_then_runs(run, tmp_path):
    settings, folder = run
    tried = tuning.tune(settings, folder, {"iterations": ["1", "60"]}, score_batch)
    assert len(tried) == 6
    on_none = tried[tried["quantizer"] == "none"].set_index("spec")
    best = ATTACK.replace("=8", "=60")
    assert on_none["psnr"].idxmax() == best
    assert on_none["chosen"].to_dict() == {spec: spec == best for spec in on_none.index}

    tuned = load_settings(folder.settings_file, {"tuned": str(folder.tuned_file)})
    assert tuned.audit.spec(ATTACK, "none") == best
    assert tuned.audit.spec("dlg", "none") == "dlg"
    again = RunFolder(tmp_path)
    again.create(tuned)
    assert again.settings() == tuned  # the winners are frozen in the settings, not in a file
    study.check_study(load_study(folder.settings_file, {"tuned": str(folder.tuned_file)}))
    before, after = (training_jobs(s, folder)[0].attacks() for s in (settings, tuned))
    assert {job.attack: job.spec for job in after} == {ATTACK: best}
    keys = [[job.key for job in jobs if job.attack == ATTACK] for jobs in (before, after)]
    assert not set(keys[0]) & set(keys[1])  # what the untuned attack made does not stand


def test_a_tuned_attack_that_does_not_parse_is_refused(tmp_path):
    path = tmp_path / "tuned.toml"
    path.write_text('[cell]\nsign = "cell:tvv=1"\n')
    with pytest.raises(SettingsError, match="tuned = .*tvv"):
        study.check_study(load_study(None, {"tuned": str(path)}))
    with pytest.raises(SettingsError, match="tuned = .*cannot be read"):
        load_settings(None, {"tuned": str(tmp_path / "none.toml")})


def test_the_command_line_prints_and_writes_the_winners(run, monkeypatch, capsys):
    words = ["tune", str(run[1].root), "--sweep", "iterations=2", "--victims", "2"]
    monkeypatch.setattr("sys.argv", ["run_simulation.py", *words, "--workers", "1"])
    run_simulation.main()
    assert ATTACK.replace("=8", "=2") in capsys.readouterr().out
    assert run[1].tuned_file.exists()


def test_sums_are_not_tuned_on(run):
    given = {"aggregation": "secagg+", "quantizers": "none", "attacks": ATTACK}
    with pytest.raises(SettingsError, match="aggregation = 'secagg\\+': plain"):
        tuning.tuning_jobs(load_settings(None, given), run[1], {})
