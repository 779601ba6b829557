from dataclasses import replace

import pytest
import torch

from attacker.choice import Suite, with_evidence
from attacker.matching.matching import Matching
from attacker.matching.optimizers import LBFGS
from attacker.presets import build_attack, suite
from attacker.readers.learned import _Regression, _trained
from fl_sim.data.public_images import PublicImages
from fl_sim.models import ModelSpec
from fl_sim.observed.evidence import BLOCKS, HeldBack
from fl_sim.quantizers import parse_quantizer
from fl_sim.updates.local_update import LocalWork, Update
from tests.attacker.observing import digits, observe

BAD = replace(build_attack("idlg:iterations=1,warmup=0,restarts=0"), name="bad")
GOOD = build_attack("cell:iterations=200")


def error(found, images):
    return torch.stack([one.images[0] - i for one, i in zip(found, images, strict=True)]).square()


def test_the_suite_takes_what_predicts_best_whatever_the_order():
    images, labels = digits(3)
    seen = observe(images, labels, "uniform:bits=4")
    alone = with_evidence(GOOD).reconstruct(seen, seed=0)
    for members in ((BAD, GOOD), (GOOD, BAD)):
        found = Suite("suite", members).reconstruct(seen, seed=0)
        for one, expected in zip(found, alone, strict=True):
            assert torch.equal(one.images, expected.images)
            assert one.evidence == expected.evidence
            assert len(one.evidence) == BLOCKS
            assert (one.attack, one.objective) == ("suite", expected.objective)
            assert one.evaluations == expected.evaluations + 1
            assert len(one.others) == len(expected.others) + 1  # the guess of the other member


@pytest.mark.parametrize("quantizer", ["gaussian:sigma=0.03", "laplace:scale=0.03"])
def test_a_search_that_fits_the_noise_loses(quantizer):
    """With little prior the payload is met noise and all, and the picture is worse for it."""
    images, labels = digits(6)
    seen = observe(images, labels, quantizer)
    fits, smooth = build_attack("scaled:tv=1e-4"), build_attack("scaled:tv=0.01")
    found = Suite("suite", (fits, smooth)).reconstruct(seen, seed=0)
    alone = {one.loss.tv: one.reconstruct(seen, seed=0) for one in (fits, smooth)}
    losses = {tv: sum(r.loss for r in made) for tv, made in alone.items()}
    assert losses[1e-4] < losses[0.01]
    assert {one.objective for one in found} == {smooth.loss.spec}
    assert error(found, images).mean() < error(alone[1e-4], images).mean()


def test_the_weight_of_the_prior_is_searched_unless_it_is_given():
    images, labels = digits(4)
    seen = observe(images, labels, "gaussian:sigma=0.03")
    tuned = with_evidence(build_attack("scaled:iterations=100")).reconstruct(seen, seed=0)
    fixed = with_evidence(build_attack("scaled:iterations=100,tv=1")).reconstruct(seen, seed=0)
    assert {one.objective for one in fixed} == {"scaled:tv=1,box=1"}
    assert all(len(one.others) >= 2 for one in tuned)
    assert sum(map(sum, (one.evidence for one in tuned))) < sum(
        map(sum, (one.evidence for one in fixed))
    )
    assert error(tuned, images).mean() < error(fixed, images).mean()


def test_attacks_see_nothing_of_what_is_held_back():
    """Payloads that differ in hidden elements alone give the same guesses before the choice."""
    images, labels = digits(2)
    seen = observe(images, labels)
    shown = [o.hold_back(HeldBack()) for o in seen]
    layout = seen[0].payload.layout
    hidden = HeldBack().elements(layout, layout.sizes)
    vectors = [o.cell.center for o in seen]
    spoiled = [v + hidden * torch.randn(v.shape, generator=torch.Generator()) for v in vectors]
    payloads = [parse_quantizer("none").encode(Update(v, layout), None) for v in spoiled]
    others = [
        replace(o, payload=p).hold_back(HeldBack()) for o, p in zip(seen, payloads, strict=True)
    ]
    for name in ("idlg", "rgap", "cell", "synthetic", "dlg"):
        attack = build_attack(name)
        attack = replace(attack, optimizer=LBFGS(3)) if isinstance(attack, Matching) else attack
        for one, other in zip(
            attack.reconstruct(shown, seed=0), attack.reconstruct(others, seed=0), strict=True
        ):
            assert torch.equal(one.images, other.images), name
            assert torch.equal(one.labels, other.labels), name


def test_an_exact_payload_needs_no_further_attack():
    images, labels = digits(2)
    seen = observe(images, labels)
    found = suite("idlg", "cell").reconstruct(seen, seed=0)
    assert error(found, images).max() < 1e-4
    assert all(len(one.others) == 0 for one in found)


@pytest.mark.parametrize(("batch", "settled"), [(4, True), (12, False)])
def test_an_exact_payload_settles_no_more_pixels_than_it_has_elements(batch, settled):
    """An update of 682 elements is explained by many images of 12 digits, of 768 pixels."""
    images, labels = digits(batch)
    spec = ModelSpec("mlp:width=8", (1, 8, 8), 10)
    seen = observe(images, labels, "none", LocalWork(batch_size=batch), spec=spec)

    class Explains:
        name, needs_public, uses_public = "explains", False, False

        def applies(self, _):
            return True

        def reconstruct(self, observations, **_):
            return [replace(r, status="converged") for r in BAD.reconstruct(observations, seed=0)]

    (found,) = Suite("suite", (Explains(), BAD)).reconstruct(seen, seed=0)
    assert len(found.others) == (0 if settled else 1)


def test_members_that_do_not_apply_are_left_out():
    images, labels = digits(2)
    suite = build_attack("suite")
    assert isinstance(suite, Suite)
    small = replace(
        suite, members=tuple(m for m in suite.members if m.name in ("analytic", "cell"))
    )
    found = small.reconstruct(observe(images, labels, "sign"), seed=0)
    assert [r.partition for r in found] == [0, 1]


def test_a_guess_that_is_not_finite_is_never_chosen():
    images, labels = digits(2)
    seen = observe(images, labels)

    class Broken:
        name, needs_public = "broken", False

        def applies(self, _):
            return True

        def reconstruct(self, observations, **_):
            made = BAD.reconstruct(observations, seed=0)
            return [replace(r, images=r.images * torch.nan, loss=-1.0) for r in made]

    found = Suite("suite", (Broken(), BAD)).reconstruct(seen, seed=0)
    assert all(r.images.isfinite().all() for r in found)


def test_the_suite_survives_labels_that_are_misread(monkeypatch):
    images, labels = digits(2)
    seen = observe(images, labels, "uniform:bits=8")
    monkeypatch.setattr(
        "attacker.matching.matching.recover_labels", lambda problems, *_: (labels[:, None] + 1) % 10
    )
    members = tuple(build_attack(name) for name in ("cell", "free_labels"))
    found = Suite("suite", members).reconstruct(seen, seed=0)
    assert [int(one.labels) for one in found] == labels.tolist()
    for one, image in zip(found, images, strict=True):
        assert (one.images[0] - image).square().mean() < 1e-2


def test_the_suite_averages_rounds_and_answers_for_each_observation():
    images, labels = digits(2)
    seen = observe(images, labels, "stochastic:bits=2", rounds=8)
    members = (build_attack("cell:iterations=50,restarts=0"), build_attack("averaging"))
    found = Suite("suite", members).reconstruct(seen, seed=0)
    assert [(r.partition, r.round) for r in found] == [(o.partition, o.round) for o in seen]


def test_an_attack_on_several_rounds_alone_answers_for_the_last_of_them():
    images, labels = digits(2)
    seen = observe(images, labels, "error_feedback(sign)", rounds=3)
    averaging = with_evidence(build_attack("averaging:iterations=20"))
    found = averaging.reconstruct(seen, seed=0)
    assert [(one.partition, one.round) for one in found] == [(0, 3), (1, 3)]
    assert all(len(one.evidence) == BLOCKS for one in found)


def test_regression_on_public_images_needs_no_optimizer():
    images, labels = digits(208)
    public = PublicImages(images[8:], labels[8:])
    seen = observe(images[:8], labels[:8], "sign")
    learned = build_attack("learned")
    found = learned.reconstruct(seen, seed=0, public=public)
    mean_image = public.images.mean(dim=0)
    ratio = [
        float((r.images[0] - i).square().mean() / (mean_image - i).square().mean())
        for r, i in zip(found, images[:8], strict=True)
    ]
    assert max(ratio) < 0.5
    assert all(r.evaluations == 0 for r in found)


def test_a_learned_attack_says_that_it_lacks_public_images():
    images, labels = digits(1)
    with pytest.warns(RuntimeWarning, match="needs public images"):
        found = build_attack("learned").reconstruct(observe(images, labels), seed=0)
    assert found[0].status == "diverged"


def test_a_network_learns_to_undo_what_blurs_pictures(monkeypatch):
    monkeypatch.setattr("attacker.readers.learned._STEPS", 60)
    images, _ = digits(200)
    blurred = 0.5 * images + 0.1
    network = _trained(blurred[50:], images[50:], seed=0)
    with torch.no_grad():
        refined = network(blurred[:50])
    error, before = ((x - images[:50]).square().mean() for x in (refined, blurred[:50]))
    assert error < 0.5 * before


@pytest.mark.parametrize("start", ["public_network", "synthetic_network"])
def test_the_network_is_a_function_of_the_seed_alone(monkeypatch, start):
    monkeypatch.setattr("attacker.readers.learned._STEPS", 5)
    images, labels = digits(108)
    public = PublicImages(images[8:], labels[8:])
    seen = observe(images[:2], labels[:2], "sign")
    attack = build_attack(f"inversion_network:start={start}")
    one, same = (attack.reconstruct(seen, seed=0, public=public) for _ in range(2))
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    other = attack.reconstruct(seen, seed=1, public=public)
    assert all(torch.equal(a.images, b.images) for a, b in zip(one, same, strict=True))
    assert not any(torch.equal(a.images, b.images) for a, b in zip(one, other, strict=True))
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_prediction_without_an_example_is_that_of_a_regression_on_the_others(monkeypatch):
    monkeypatch.setattr("attacker.readers.learned.RIDGES", (0.1,))
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(12, 5, generator=generator)
    images = torch.randn(12, 1, 2, 2, generator=generator)
    regression = _Regression.of(codes, images)
    centered, values = regression.centered, (images - images.mean(dim=0)).flatten(1)
    kernel = centered @ centered.T
    kernel += 0.1 * kernel.diagonal().mean() * torch.eye(12)
    others = torch.arange(12) != 3
    weights = torch.linalg.solve(kernel[others][:, others], values[others])
    expected = kernel[3, others] @ weights + images.mean(dim=0).flatten()
    assert torch.allclose(regression.without_each()[3].flatten(), expected, atol=1e-5)
