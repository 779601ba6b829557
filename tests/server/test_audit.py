from clients.app import app
from fl_sim.engines import LocalGrid
from fl_sim.runs import RunFolder
from fl_sim.settings import load_settings
from fl_sim.trials import trials_of
from server.audit import audit_jobs, run_job
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
    jobs = audit_jobs(settings, folder)
    assert [job.rounds for job in jobs] == [(1, 2, 3), (1, 2, 3)]
    for job in jobs:
        made = run_job(job)
        assert [(one.attack, one.round, one.partition) for one in made] == [
            (job.attack, 3, 0),
            (job.attack, 3, 1),
        ]
