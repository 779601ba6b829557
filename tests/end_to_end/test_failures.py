"""What goes wrong on the way: no failure corrupts a result, hangs, or loses what was finished."""

import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

import run_simulation
from clients import app as client
from clients import mods
from fl_sim.engines.interrupts import WorkerLostError
from fl_sim.models import ModelSpec
from fl_sim.quantizers import parse_quantizer
from fl_sim.seeding import Purpose, torch_rng
from fl_sim.updates.local_update import LocalReply, Update, flat_model
from tests.commands import command

ROOT = Path(__file__).parents[2]
SMALL = [
    *("--rounds", "3", "--clients", "3", "--limit", "200", "--victims", "3", "--observe", "2"),
    *("--attacks", "dlg:iterations=5,restarts=0", "--workers", "1", "--timeout", "5"),
]


def events(root, kind):
    lines = map(json.loads, (root / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line.get("event") == kind]


def fails(*_):
    raise OSError("no camera")


def not_a_number(trial, *_):
    size = flat_model(trial.model_spec).layout.size
    return LocalReply(torch.full((size,), math.nan), torch.zeros(0))


def hangs(*_):
    time.sleep(40)


@pytest.fixture
def misbehave(monkeypatch):
    """Let client 1 compute its update in a way of its own, in round 2."""

    def patch(fault, only="none"):
        honest = client.compute_reply

        def compute(trial, partition, server_round, *sent):
            if (partition, server_round, trial.quantizer) == (1, 2, only):
                return fault(trial)
            return honest(trial, partition, server_round, *sent)

        monkeypatch.setattr(client, "compute_reply", compute)

    return patch


def dropped_of(root):
    history = pd.read_csv(root / "history.csv")
    assert history["accuracy"].between(0, 1).all()
    assert history["loss"].lt(10).all()
    return history["dropped"].tolist()


@pytest.mark.parametrize(
    ("fault", "words"),
    [(fails, "no camera"), (not_a_number, "finite"), (hangs, "did not reply in time")],
    ids=["raises", "returns NaN", "never answers"],
)
def test_a_client_that_fails_is_left_out_and_said_so(misbehave, tmp_path, fault, words):
    misbehave(fault)
    began = time.monotonic()
    assert command(*SMALL, "--quantizers", "none", "--out", tmp_path) == 0
    assert time.monotonic() - began < 35
    late = fault is hangs  # it is still asleep in the next round
    assert dropped_of(tmp_path) == [0, 0, 1, int(late)]
    told = events(tmp_path, "dropped")
    assert [(line["round"], int(line["partition"])) for line in told] == [(2, 1), (3, 1)][
        : 1 + late
    ]
    assert words in told[0]["message"]
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert sorted(set(scores["partition"])) == [0, 2]  # it is no victim either
    assert scores["mse"].notna().all()


def test_a_client_that_sends_another_models_update_is_left_out(monkeypatch, tmp_path):
    honest = mods.pack_reply

    def pack(reply, payload, statistics):
        layout = flat_model(ModelSpec("mlp", (1, 8, 8), 10)).layout
        other = Update(torch.zeros(layout.size), layout)
        rng = torch_rng(0, Purpose.QUANTIZER)
        sent.append(1)
        wrong = len(sent) % 3 == 2
        sent_payload = parse_quantizer("none").encode(other, rng) if wrong else payload
        return honest(reply, sent_payload, statistics)

    sent = []
    monkeypatch.setattr(mods, "pack_reply", pack)
    assert command(*SMALL, "--quantizers", "none", "--out", tmp_path) == 0
    assert dropped_of(tmp_path) == [0, 1, 1, 1]
    assert {line["partition"] for line in events(tmp_path, "dropped")} == {1}


def test_a_trial_without_any_usable_reply_stops_no_other(monkeypatch, tmp_path, capsys):
    honest = client.compute_reply
    with monkeypatch.context() as broken:
        broken.setattr(
            client,
            "compute_reply",
            lambda trial, *rest: fails() if trial.quantizer == "none" else honest(trial, *rest),
        )
        assert command(*SMALL, "--quantizers", "none,sign", "--out", tmp_path) == 1
    assert "1 of 2 trials failed" in capsys.readouterr().err.replace("\n", " ")
    assert [line["trial"] for line in events(tmp_path, "failed")] == ["none_seed-0"]
    assert pd.read_csv(tmp_path / "results.csv")["trials"].tolist() == [0, 1]
    assert command(*SMALL, "--quantizers", "none,sign", "--out", tmp_path) == 0  # resumes
    assert pd.read_csv(tmp_path / "results.csv")["trials"].tolist() == [1, 1]
    trained = [line["trial"] for line in events(tmp_path, "trained")]
    assert trained == ["sign_seed-0", "none_seed-0"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        words = ["run_simulation.py", *SMALL, "--quantizers", "none,sign", "--out", str(root)]
        patch.setattr(sys, "argv", words)
        run_simulation.main()
    return root


def test_a_truncated_observation_is_made_again(finished, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(finished, root)
    path = root / "observations" / "sign_seed-0" / "round-00002.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    for name in ("reconstructions", "scores"):
        shutil.rmtree(root / name)
    assert command(*SMALL, "--quantizers", "none,sign", "--out", root) == 0
    assert path.read_bytes() == whole
    assert (root / "results.csv").read_bytes() == (finished / "results.csv").read_bytes()
    again = [line["trial"] for line in events(root, "trained")][2:]
    assert again == ["sign_seed-0"]


def test_an_altered_observation_is_never_attacked(finished, tmp_path, capsys):
    root = tmp_path / "run"
    shutil.copytree(finished, root)
    path = root / "observations" / "sign_seed-0" / "round-00002.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    shutil.rmtree(root / "reconstructions")
    capsys.readouterr()
    assert command(*SMALL, "--quantizers", "none,sign", "--out", root) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "round-00002.safetensors" in line
    path.unlink()
    assert command(*SMALL, "--quantizers", "none,sign", "--out", root) == 0
    assert (root / "results.csv").read_bytes() == (finished / "results.csv").read_bytes()


@pytest.mark.parametrize("place", ["/proc/run", "{file}/run"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, capsys, place):
    (tmp_path / "file").touch()
    out = place.format(file=tmp_path / "file")
    assert command(*SMALL, "--out", out) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: out = ")
    assert "cannot be written" in line


NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
needs_namespaces = pytest.mark.skipif(
    not shutil.which("unshare")
    or subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "t", "/mnt"], check=False).returncode,
    reason="a small file system of one's own cannot be mounted here",
)


def on_small_disk(tmp_path, script):
    """Run a shell script with $DISK, a file system of 300 KiB, and $RUN, the command."""
    disk = tmp_path / "disk"
    disk.mkdir()
    run = f"{sys.executable} {ROOT / 'run_simulation.py'} {' '.join(SMALL)} --quantizers none,sign"
    mount = f"mount -t tmpfs -o size=300k tmpfs {disk} || exit 99\n"
    return subprocess.run(
        [*NAMESPACE, "sh", "-c", f"DISK={disk}\nRUN='{run} --out {disk}/run'\n{mount}{script}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=200,
    )


@pytest.mark.slow
@needs_namespaces
def test_a_full_disk_keeps_what_was_finished(finished, tmp_path):
    done = on_small_disk(
        tmp_path,
        f"""
        $RUN; echo "status $?"; ls $DISK/run/training
        mount -o remount,size=60m $DISK
        $RUN >/dev/null; echo "status $?"
        cp $DISK/run/results.csv $DISK/run/log.jsonl {tmp_path}
        """,
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, done.stderr
    assert "No space left on device" in errors[0]
    assert "run the same command to continue" in errors[0]
    assert "Traceback" not in done.stderr
    assert [line for line in done.stdout.splitlines() if "status" in line] == [
        "status 1",
        "status 0",
    ]
    assert "none_seed-0.json" in done.stdout
    assert (tmp_path / "results.csv").read_bytes() == (finished / "results.csv").read_bytes()
    trained = [line["trial"] for line in events(tmp_path, "trained")]
    assert sorted(trained) == ["none_seed-0", "sign_seed-0"]


@pytest.mark.slow
@needs_namespaces
def test_a_read_only_folder_is_refused(tmp_path):
    done = on_small_disk(tmp_path, 'mount -o remount,ro $DISK; $RUN; echo "status $?"')
    assert done.stdout == "status 2\n"
    (line,) = done.stderr.strip().splitlines()
    assert "Read-only file system" in line


def test_workers_that_are_lost_for_good_are_one_line(tmp_path, monkeypatch, capsys):
    def lost(*_):
        raise WorkerLostError("a worker was lost in round 1")

    monkeypatch.setattr("server.study.train", lost)
    assert command(*SMALL, "--out", tmp_path / "run", "--quiet") == 1
    assert capsys.readouterr().err == (
        "error: a worker was lost in round 1; "
        "finished work is kept; run the same command to continue\n"
    )
