import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_sim.models import ModelSpec
from fl_sim.observed.observations import (
    Observation,
    load_observations,
    round_path,
    save_observations,
)
from fl_sim.observed.reconstructions import (
    Reconstruction,
    load_reconstructions,
    reconstruction_key,
    reconstruction_path,
    save_reconstructions,
)
from fl_sim.quantizers import parse_quantizer
from fl_sim.quantizers.catalogue import catalogue
from fl_sim.storage.files import StoreError, read_tensors, write_bytes, write_tensors
from fl_sim.study.trials import trial_name
from fl_sim.updates.local_update import LocalWork, Update, flat_model

SPEC = ModelSpec("lenet", (1, 8, 8), 10)


def observe(partition, spec="uniform:bits=4"):
    layout = flat_model(SPEC).layout
    update = Update(torch.randn(layout.size), layout)
    payload = parse_quantizer(spec).encode(update, torch.Generator())
    weights = torch.arange(layout.size, dtype=torch.float32)
    return Observation("trial", 3, partition, SPEC, LocalWork(batch_size=2), weights, payload)


def test_observations_come_back_exactly_and_sorted(tmp_path):
    kept = [observe(10), observe(2)]
    save_observations(tmp_path, kept)
    read = load_observations(round_path(tmp_path, "trial", 3))
    assert [o.partition for o in read] == [2, 10]
    assert read[1].payload == kept[0].payload
    assert torch.equal(read[0].weights, kept[0].weights)
    assert (read[0].model, read[0].work, read[0].round) == (SPEC, LocalWork(batch_size=2), 3)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_observation_file_is_refused(tmp_path, keep):
    save_observations(tmp_path, [observe(0)])
    path = round_path(tmp_path, "trial", 3)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StoreError, match=r"round-00003\.safetensors"):
        load_observations(path)


def test_an_altered_payload_on_disk_is_refused(tmp_path):
    save_observations(tmp_path, [observe(0)])
    path = round_path(tmp_path, "trial", 3)
    tensors, facts = read_tensors(path)
    tensors["payload.0"][40] ^= 1
    write_tensors(path, tensors, facts)
    with pytest.raises(StoreError, match="checksum"):
        load_observations(path)


@pytest.mark.parametrize(("found", "words"), [(9, "format version 9"), (None, "no format version")])
def test_files_of_another_format_are_refused_by_name(tmp_path, found, words):
    save_observations(tmp_path, [observe(0)])
    seen = round_path(tmp_path, "trial", 3)
    guesses = tmp_path / "guesses.safetensors"
    save_reconstructions(guesses, [], "k")
    for path, load in (
        (seen, load_observations),
        (guesses, load_reconstructions),
        (guesses, reconstruction_key),
    ):
        tensors, facts = read_tensors(path)
        write_tensors(path, tensors, facts | {"format": found})
        with pytest.raises(
            StoreError, match=f"{path.name} in .* has {words}; this code reads [12]"
        ):
            load(path)


def test_what_a_server_saw_is_readable_by_its_owner_only(tmp_path):
    save_observations(tmp_path, [observe(0)])
    assert round_path(tmp_path, "trial", 3).stat().st_mode & 0o077 == 0


def test_reconstructions_come_back_exactly(tmp_path):
    made = Reconstruction(
        trial="trial",
        round=3,
        partition=1,
        attack="dlg",
        images=torch.randn(2, 1, 8, 8),
        labels=torch.tensor([4, 5]),
        loss=float("inf"),
        status="diverged",
        objective="squared",
        evaluations=17,
        evidence=(0.1, float("inf")),
        others=torch.randn(3, 2, 1, 8, 8),
    )
    path = reconstruction_path(tmp_path, "trial", "cell:tv=1e-4,restarts=2", 3)
    save_reconstructions(path, [made], key="k")
    (read,), key = load_reconstructions(path)
    assert key == "k"
    assert torch.equal(read.images, made.images)
    assert torch.equal(read.labels, made.labels)
    assert torch.equal(read.others, made.others)
    assert read.evidence == made.evidence
    assert (read.loss, read.status, read.evaluations) == (float("inf"), "diverged", 17)
    assert path.parent.name == "cell-tv-1e-4-restarts-2"


@pytest.mark.parametrize(
    "specs",
    [
        ("mixed:body.[02].*=8,rest=2", "mixed:body.[!02].*=8,rest=2"),
        ("mixed:a_b=8,rest=2", "mixed:a-b=8,rest=2", "mixed:a:b=8,rest=2"),
        ("mixed:x_8_y=4,rest=2", "mixed:x=8,y=4,rest=2"),
        ("mixed:Body=8,rest=2", "mixed:body=8,rest=2"),
        ("cell:tv=1e4", "cell:tv=1e-4", "cell:tv=1e+4", "cell:tv=-1e4"),
        ("mixed:" + "a" * 300 + "=8,rest=2", "mixed:" + "a" * 301 + "=8,rest=2"),
    ],
)
def test_specs_that_differ_have_folders_that_differ(specs, tmp_path):
    paths = {str(reconstruction_path(tmp_path, "trial", spec, 1)).lower() for spec in specs}
    names = {trial_name(spec, 0).lower() for spec in specs}
    assert len(paths) == len(names) == len(specs)
    assert max(map(len, names)) < 200


@given(st.lists(st.text("ab8_:,=.*![]()+-", max_size=12), min_size=2, max_size=20, unique=True))
@settings(max_examples=50, deadline=None)
def test_no_two_mixed_specs_share_a_folder(rules):
    specs = [f"mixed:{rule}=8,rest=2" for rule in rules]
    assert len({trial_name(spec, 0) for spec in specs}) == len(specs)


def test_catalogued_quantizers_are_called_what_they_are():
    names = [trial_name(entry.example, 0) for entry in catalogue()]
    assert "error-feedback-sign_seed-0" in names
    assert "qsgd-levels-4-norm-l2_seed-0" in names
    assert names == [
        "-".join(re.findall(r"[A-Za-z0-9.]+", e.example)) + "_seed-0" for e in catalogue()
    ]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
