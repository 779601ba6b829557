from clients.app import app
from fl_sim.engines.grids import LocalGrid
from fl_sim.study.plan import training_jobs
from fl_sim.study.runs import RunFolder, attack_key, same_inputs
from fl_sim.study.settings import load_settings
from fl_sim.study.trials import attack_groups, trials_of
from server.auditing.jobs import run_attack
from server.training import find_nodes, train_trial


def test_rounds_of_one_batch_are_attacked_together_and_give_one_reconstruction_a_client(tmp_path):
    attacks = ("cell:iterations=2,restarts=0", "joint:iterations=2,restarts=0")
    settings = load_settings(
        None,
        {"quantizers": "sign", "attacks": ",".join(attacks), "fixed_batch": "true"}
        | {"rounds": "3", "clients": "2", "observe": "1,2,3"},
    )
    trial, folder, grid = trials_of(settings)[0], RunFolder(tmp_path), LocalGrid(app, 2)
    train_trial(grid, trial, settings, folder, find_nodes(grid, 2), lambda: None)
    jobs = training_jobs(settings, folder)[0].attacks()
    assert [job.rounds for job in jobs] == [(1, 2, 3), (1, 2, 3)]
    for job in jobs:
        made = run_attack(job)
        assert [(one.attack, one.round, one.partition) for one in made] == [
            (job.attack, 3, 0),
            (job.attack, 3, 1),
        ]


def test_rounds_of_other_batches_are_attacked_together_and_give_one_reconstruction_each(tmp_path):
    settings = load_settings(
        None,
        {"quantizers": "none", "attacks": "cell:iterations=2,restarts=0", "rounds": "3"}
        | {"clients": "2", "observe": "1,2,3", "victims": "1"},
    )
    trial, folder, grid = trials_of(settings)[0], RunFolder(tmp_path), LocalGrid(app, 2)
    train_trial(grid, trial, settings, folder, find_nodes(grid, 2), lambda: None)
    (job,) = training_jobs(settings, folder)[0].attacks()
    assert job.rounds == (1, 2, 3)
    assert [one.round for one in run_attack(job)] == [1, 2, 3]


def rounds_together(**changes):
    settings = load_settings(
        None, {"rounds": "5", "observe": "1,2,3,4,5", "clients": "30"} | changes
    )
    return attack_groups(trials_of(settings)[0], settings)


def test_as_many_rounds_are_attacked_together_as_fill_a_batch():
    assert rounds_together(victims="10") == ((1, 2, 3, 4, 5),)
    assert rounds_together(victims="20") == ((1, 2, 3), (4, 5))
    assert rounds_together(victims="100") == ((1, 2), (3, 4), (5,))  # there are 30 clients
    alone = ((1,), (2,), (3,), (4,), (5,))
    assert rounds_together(update="delta") == alone
    assert rounds_together(batch_size="8") == alone
    assert rounds_together(batch_size="8", fixed_batch="true") == ((1, 2, 3, 4, 5),)


def test_files_of_rounds_attacked_otherwise_do_not_stand(monkeypatch):
    settings = load_settings(None, {"rounds": "3", "observe": "1,2,3", "victims": "1"})
    trial = trials_of(settings)[0]
    together = attack_key(trial, settings, "dlg")
    monkeypatch.setattr("fl_sim.study.trials._BATCH", 1)
    assert not same_inputs(attack_key(trial, settings, "dlg"), together)
