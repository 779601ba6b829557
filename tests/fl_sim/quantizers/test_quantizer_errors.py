"""Error of every quantizer: identities by Monte Carlo at five sigma, bounds by hypothesis."""

import math

import pytest
import torch
from hypothesis import given, settings
from scipy.linalg import hadamard
from sklearn.cluster import KMeans
from torch import Tensor

from fl_sim.quantizers import parse_quantizer
from fl_sim.quantizers.kmeans import fit_codebook, lloyd, midpoints
from fl_sim.quantizers.rotation import Rotation, lloyd_max, mix, padded_length
from fl_sim.updates.local_update import Update
from tests.fl_sim.quantizers.quantizer_cases import layout_of, seeded, update_of, updates

some = settings(max_examples=40, deadline=None, derandomize=True)
X = torch.tensor([-1.0, -0.63, -0.2, -1e-3, 0.0, 0.04, 0.31, 0.5, 0.77, 0.9])
COPIES = 40_000
EPSILON = 1e-6


def sent(spec: str, update: Update, seed: int = 0) -> Tensor:
    quantizer = parse_quantizer(spec)
    return quantizer.decode(quantizer.encode(update, seeded(seed))).vector


def draws(spec: str, x: Tensor = X) -> Tensor:
    """Decode many independent roundings of ``x`` that share its scale, ``(COPIES, len(x))``."""
    return sent(spec, update_of(x.repeat(COPIES))).view(COPIES, -1)


def assert_mean(samples: Tensor, exact: Tensor | float) -> None:
    """Assert that the mean over rows is ``exact`` within five of its standard errors."""
    samples = samples.double()
    error = 5 * samples.std(dim=0) / math.sqrt(len(samples)) + EPSILON
    assert ((samples.mean(dim=0) - exact).abs() <= error).all()


def lattice_of(spec: str) -> tuple[float, float]:
    """Return origin and step the quantizer uses on copies of ``X``."""
    if spec.startswith("stochastic"):
        levels = int(spec.rpartition("=")[2])
        return -1.0, 1.9 / (levels - 1)
    if spec == "terngrad":
        return -1.0, 1.0
    levels = int(spec.split("=")[1].split(",", maxsplit=1)[0])
    norm = float(X.norm()) * math.sqrt(COPIES) if "l2" in spec else 1.0
    return -norm, norm / levels


@pytest.mark.parametrize(
    "spec",
    [
        "stochastic:levels=2",
        "stochastic:levels=4",
        "stochastic:levels=240",
        "stochastic:levels=4096",
        "qsgd:levels=1,norm=inf",
        "qsgd:levels=7,norm=inf",
        "qsgd:levels=2000,norm=l2",
        "terngrad",
    ],
)
def test_stochastic_lattices_are_unbiased_with_the_exact_variance(spec):
    origin, step = lattice_of(spec)
    got = draws(spec)
    place = (X.double() - origin) / step
    fraction = place - place.floor()
    assert_mean(got, X)
    assert_mean((got - X).double() ** 2, step**2 * fraction * (1 - fraction))
    assert ((got - X).abs() < step * (1 + 1e-5)).all()


def test_terngrad_error_identity():
    update = update_of(torch.randn(500, generator=seeded()))
    x = update.vector.double()
    exact = x.abs().max() * x.abs().sum() - x.square().sum()
    squares = [(sent("terngrad", update, seed) - x).square().sum() for seed in range(400)]
    assert_mean(torch.stack(squares), float(exact))


@pytest.mark.parametrize("levels", [1, 4, 16])
def test_qsgd_meets_its_published_bound(levels):
    update = update_of(torch.randn(300, generator=seeded()))
    x = update.vector
    bound = min(300 / levels**2, math.sqrt(300) / levels) * float(x.square().sum())
    spec = f"qsgd:levels={levels},norm=l2"
    squares = [float((sent(spec, update, s) - x).square().sum()) for s in range(100)]
    assert sum(squares) / 100 <= bound


def test_natural_is_unbiased_with_the_exact_variance_and_bound():
    x = torch.tensor([1.0, -1.5, 1.9, 0.3, -0.26, 3e-5, 0.0, 7e8])
    got = draws("natural", x)
    below = torch.where(x == 0, 0.0, 2.0 ** x.abs().clamp_min(1e-30).log2().floor())
    scale = torch.where(x == 0, 1.0, x.abs())
    variance = (x.abs() - below) * (2 * below - x.abs())
    assert_mean(got / scale, x.sign())
    assert_mean(((got - x) / scale) ** 2, variance / scale**2)
    assert (variance <= x.square() / 8 * (1 + 1e-6)).all()


def test_natural_sends_powers_of_two_and_subnormals():
    tiny = torch.tensor([2.0**-149, -(2.0**-127), 2.0**-126])
    got = sent("natural", update_of(torch.tensor([4.0, -0.125]), tiny))
    assert got[:2].tolist() == [4.0, -0.125]
    assert set(got[2:].abs().tolist()) <= {0.0, 2.0**-126}
    assert sent("natural", update_of([3.4e38] * 50)).isfinite().all()


@pytest.mark.parametrize(
    ("spec", "variance"), [("gaussian:sigma=0.3", 0.09), ("laplace:scale=0.3", 0.18)]
)
def test_noise_is_unbiased_with_the_exact_variance(spec, variance):
    got = draws(spec)
    assert_mean(got, X)
    assert_mean((got - X) ** 2, variance)


def test_clipping_bounds_the_norm_and_leaves_small_updates_alone():
    update = update_of([3.0, -4.0], [0.0])
    torch.testing.assert_close(sent("clip:norm=1", update), torch.tensor([0.6, -0.8, 0.0]))
    assert torch.equal(sent("clip:norm=5.5", update), update.vector)
    # After pruning, the norm of what is kept is clipped.
    kept = sent("topk:keep=0.4,scope=global+clip:norm=2", update)
    torch.testing.assert_close(kept, torch.tensor([1.2, -1.6, 0.0]))


@pytest.mark.parametrize("spec", ["clip:norm=1", "clip:norm=1+scaled_sign", "clip:norm=1+drive"])
@some
@given(update=updates())
def test_what_follows_clipping_sees_the_clipped_update(spec, update):
    inner = spec.partition("+")[2] or "none"
    exact = update.vector / max(1.0, float(update.vector.norm()))
    expected = sent(inner, Update(exact, update.layout))
    torch.testing.assert_close(sent(spec, update), expected, rtol=1e-4, atol=1e-5)


def test_a_clipped_update_is_known_up_to_its_scale():
    quantizer = parse_quantizer("clip:norm=1+gaussian:sigma=0.001")
    update = update_of(torch.randn(50, generator=seeded()))
    payload = quantizer.encode(update, seeded())
    exact = quantizer.misfit(payload, update.vector)
    same = quantizer.misfit(payload, 7 * update.vector)
    torch.testing.assert_close(same, exact, rtol=1e-3, atol=1e-3)
    assert quantizer.misfit(payload, 0.1 * update.vector).mean() > 100 * exact.mean()


@pytest.mark.parametrize(
    "spec",
    [
        "rqm:clip=1,margin=1,levels=16,keep=0.42",
        "rqm:clip=1,margin=0.2,levels=4,keep=0.9",
        "poisson_binomial:clip=1,trials=16,theta=0.25",
        "poisson_binomial:clip=2,trials=300,theta=0.1",
    ],
)
def test_private_levels_are_unbiased_and_as_likely_as_they_say(spec):
    quantizer = parse_quantizer(spec)
    got = draws(spec)
    assert_mean(got, X)
    outside = draws(spec, torch.tensor([-5.0, 5.0]))
    clip = quantizer.clip
    assert_mean(outside, torch.tensor([-clip, clip]))
    # How often each code was drawn for each value, against the likelihood that attackers use.
    codes = torch.arange(quantizer.code_levels)
    likelihood = quantizer._likelihood(codes[:, None].expand(-1, len(X)))
    said = likelihood.log_probability(X.expand(len(codes), -1)).exp().double()
    values = quantizer._value(codes)
    drawn = torch.stack([(got - value).abs().lt(1e-5).double().mean(dim=0) for value in values])
    torch.testing.assert_close(said.sum(dim=0), torch.ones(len(X)).double(), rtol=1e-4, atol=0)
    assert ((drawn - said).abs() <= 5 * (said / COPIES).sqrt() + 5 / COPIES).all()


def test_poisson_binomial_has_the_exact_variance():
    got = draws("poisson_binomial:clip=1,trials=16,theta=0.25")
    assert_mean((got - X) ** 2, (0.25 - (0.25 * X) ** 2) / (16 * 0.25**2))


def test_noisy_sign_has_the_exact_mean():
    spec = "noisy_sign:clip=1000,noise=0.0005"
    sigma = 0.5
    exact = sigma * math.sqrt(math.pi / 2) * torch.erf(X.double() / (sigma * math.sqrt(2)))
    assert_mean(draws(spec), exact)
    clipped = sent("noisy_sign:clip=0.01,noise=100", update_of(X.repeat(COPIES)))
    assert_mean(clipped[:, None], 0.0)  # what is left of the values is far below the noise


@pytest.mark.parametrize("name", ["skellam", "discrete_gaussian"])
@pytest.mark.parametrize(("noise", "bits"), [(0.01, 16), (0.5, 8), (2.0, 12)])
def test_integer_noise_has_the_variance_it_says(name, noise, bits):
    spec = f"{name}:clip=1,noise={noise},bits={bits}"
    quantizer = parse_quantizer(spec)
    x = torch.randn(2000, generator=seeded(3))
    x /= 2 * x.norm()
    errors = torch.stack([sent(spec, update_of(x), seed) - x for seed in range(30)])
    assert_mean(errors.flatten()[:, None], 0.0)
    least, most = noise**2, noise**2 + quantizer.grain**2 / 4
    variance = float(errors.square().mean())
    slack = 5 * math.sqrt(2 / errors.numel())
    assert least * (1 - slack) < variance < most * (1 + slack)


def test_rounding_never_exceeds_the_norm_that_is_accounted_for():
    quantizer = parse_quantizer("skellam:clip=1,noise=1,bits=6")
    x = torch.randn(640, generator=seeded()).sign() / math.sqrt(640)
    for seed in range(20):
        whole = quantizer._round((x / quantizer.grain).double(), 640, seeded(seed))
        assert float(whole.norm()) <= quantizer._largest_norm(640, 1.0)
        assert torch.equal(whole, whole.round())


def test_dp_gaussian_clips_and_adds_noise_of_z_times_clip():
    x = torch.full((20_000,), 0.01)  # norm sqrt(2)
    got = sent("dp_gaussian:clip=0.5,noise=0.02", update_of(x))
    assert_mean(got[:, None], 0.01 * 0.5 / math.sqrt(2))
    assert_mean((got[:, None] - 0.01 * 0.5 / math.sqrt(2)) ** 2, 0.01**2)
    inside = sent("dp_gaussian:clip=5,noise=1e-6", update_of(x))
    torch.testing.assert_close(inside, x, rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("spec", "exact"),
    [
        ("drive:scale=biased", 1 - 2 / math.pi),
        ("drive", math.pi / 2 - 1),
        ("eden:bits=1", math.pi / 2 - 1),
        ("eden:bits=2", 0.1331),
        ("eden:bits=3", 0.0358),
        ("eden:bits=4", 0.0096),
    ],
)
@pytest.mark.parametrize("size", [4096, 5003])
def test_rotated_quantizers_reach_their_normalised_error(spec, exact, size):
    """On a heavy-tailed vector too: after the rotation every vector looks Gaussian.

    Errors of the elements that padding added do not count.
    """
    exact *= size / padded_length(size)
    x = torch.randn(size, generator=seeded()) * torch.randn(size, generator=seeded(1)).exp()
    errors = [float((sent(spec, update_of(x), s) - x).square().sum()) for s in range(20)]
    assert sum(errors) / 20 / float(x.square().sum()) == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("spec", ["drive", "eden:bits=2"])
def test_rotated_quantizers_are_unbiased(spec):
    x = torch.randn(101, generator=seeded(5))
    assert_mean(torch.stack([sent(spec, update_of(x), s) for s in range(2000)]), x)


@some
@given(update=updates())
def test_rotation_is_orthonormal_and_its_own_undoing(update):
    rotation = Rotation.of(11, update.layout.size)
    rotated = rotation(update.vector)
    size = float(update.vector.norm())
    assert float(rotated.norm()) == pytest.approx(size, rel=1e-5)
    torch.testing.assert_close(
        rotation.invert(rotated), update.vector, rtol=1e-5, atol=1e-5 * size + 1e-12
    )


@pytest.mark.parametrize(
    ("size", "length"), [(1, 1), (11, 11), (64, 64), (65, 66), (15826, 15872), (1 << 20, 1 << 20)]
)
def test_padded_length_is_hardly_longer(size, length):
    assert padded_length(size) == length
    assert padded_length(length) == length
    assert length <= max(size, 1.032 * size)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 24, 64, 66, 480, 62 << 5])
def test_mix_is_its_definition(size):
    x = torch.randn(size, generator=seeded(), dtype=torch.float64)
    power = size & -size
    odd = torch.arange(size // power).double()
    angle = 2 * math.pi * torch.outer(odd, odd) / len(odd)
    walsh = torch.from_numpy(hadamard(power)).double() / math.sqrt(power)
    exact = walsh @ x.view(power, -1) @ (angle.cos() + angle.sin()) / math.sqrt(len(odd))
    torch.testing.assert_close(mix(x), exact.flatten(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mix(torch.stack([x, -x]))[1], -exact.flatten(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [33 << 15, (1 << 20) + 5000])
def test_large_updates_rotate_as_small_ones_do(size):
    """In pieces, without intermediate results that autograd would keep."""
    x = torch.randn(size, generator=seeded())
    rotation = Rotation.of(5, size)
    rotated = rotation(x)
    torch.testing.assert_close(rotated, rotation(x.clone().requires_grad_()).detach())
    torch.testing.assert_close(rotation.invert(rotated), x, rtol=1e-4, atol=1e-5)


def test_fit_to_a_histogram_is_as_good_as_to_all_values():
    """Heavy tails, two separate heaps, most elements zero, and a spread far below the mean."""
    n = (1 << 20) + 1000
    x = torch.randn(n, generator=seeded())
    other = torch.randn(n, generator=seeded(1))
    for values in (x / other, x + 8 * other.sign(), x * (other > 1), 1000 + x * 1e-3):
        for clusters in (4, 16):
            exact = lloyd(values.sort().values.double(), torch.ones(n).double(), clusters, 100)
            errors = []
            for book in (fit_codebook(values, clusters), exact):
                nearest = book[torch.bucketize(values, midpoints(book))]
                errors.append(float((values - nearest).double().square().sum()))
            assert errors[0] <= 1.002 * errors[1]


@pytest.mark.parametrize(
    ("bits", "book", "error"),
    [
        (1, [0.7979], 0.3634),
        (2, [0.4528, 1.5104], 0.1175),
        (3, [0.2451, 0.7560, 1.3439, 2.1520], 0.03454),
    ],
)
def test_lloyd_max_matches_the_published_tables(bits, book, error):
    """Max 1960, table 1."""
    centroids, edges = lloyd_max(bits)
    torch.testing.assert_close(centroids[len(book) :], torch.tensor(book), rtol=0, atol=2e-4)
    torch.testing.assert_close(centroids, -centroids.flip(0), rtol=0, atol=1e-6)
    z = torch.randn(400_000, generator=seeded())
    assert_mean((centroids[torch.bucketize(z, edges)] - z)[:, None] ** 2, error)


@some
@given(update=updates())
def test_float_formats_meet_their_relative_error(update):
    x = update.vector
    tolerance = 1 + 1e-6
    fp16 = x[(x.abs() >= 2.0**-14) & (x.abs() <= 65504)]
    got = sent("fp16", update)[(x.abs() >= 2.0**-14) & (x.abs() <= 65504)]
    assert ((got - fp16).abs() <= fp16.abs() * 2**-11 * tolerance).all()
    assert ((sent("bf16", update) - x).abs() <= x.abs() * 2**-8 * tolerance).all()
    for spec, bits, smallest in (("e4m3", 4, 2.0**-6 / 448), ("e5m2", 3, 2.0**-14 / 57344)):
        got = sent(f"fp8:format={spec},scope=global", update)
        normal = x.abs() >= float(x.abs().max()) * smallest * 2
        assert ((got - x).abs() <= x.abs() * 2.0**-bits * tolerance)[normal].all()


def test_float_formats_saturate():
    got = sent("fp16", update_of([1e6, -1e30, 65504.0]))
    assert got.tolist() == [65504.0, -65504.0, 65504.0]
    assert sent("bf16", update_of([3.4e38])).isfinite().all()
    for name in ("e4m3", "e5m2"):
        got = sent(f"fp8:format={name}", update_of([3e38, -3e38, 1.0]))
        torch.testing.assert_close(got[:2], torch.tensor([3e38, -3e38]))


@pytest.mark.parametrize("levels", [2, 3, 16, 120, 65536])
@some
@given(update=updates())
def test_uniform_errs_by_at_most_half_a_step(levels, update):
    for piece in update.layout.split(update.vector):
        spread = float(piece.max()) - float(piece.min())
        got = sent(f"uniform:levels={levels}", update_of(piece))
        ulp = float(piece.abs().max()) * 2e-7
        assert (got - piece).abs().max() <= spread / (levels - 1) / 2 * 1.0001 + ulp
        assert got.unique().numel() <= levels


def test_uniform_sends_minimum_and_maximum_exactly():
    got = sent("uniform:bits=3", update_of([-0.3, 0.1, 0.7], [5.0, 5.0], [1e-8, 2e-8]))
    torch.testing.assert_close(got[[0, 2]], torch.tensor([-0.3, 0.7]))
    assert got[3:].tolist() == pytest.approx([5.0, 5.0, 1e-8, 2e-8], rel=1e-6)


@pytest.mark.parametrize(
    ("spec", "width", "levels"),
    [
        ("absmax:bits=6", 400_000, 31),
        ("blockwise:bits=6,block=200000", 200_000, 31),
        ("blockwise:bits=6,block=3000", 3000, 31),
        ("blockwise:bits=6,block=7", 7, 31),
    ],
)
def test_vectors_of_several_tiles_meet_the_same_bound(spec, width, levels):
    x = torch.randn(400_000, generator=seeded()) * torch.linspace(0.01, 1, 400_000)
    got = sent(spec, update_of(x))
    for block, decoded in zip(x.split(width)[:200], got.split(width)[:200], strict=True):
        assert (decoded - block).abs().max() <= float(block.abs().max()) / levels / 2 * 1.001


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@some
@given(update=updates())
def test_absmax_errs_by_at_most_half_a_step_and_keeps_zero(bits, update):
    for piece in update.layout.split(update.vector):
        step = float(piece.abs().max()) / (2 ** (bits - 1) - 1)
        got = sent(f"absmax:bits={bits}", update_of(piece))
        # Half a step, and float32's own rounding in the division and the product: at 16 bits, where
        # a step is 512 times the rounding, that is visible.
        rounding = 2 * float(piece.abs().max()) * torch.finfo(torch.float32).eps
        assert (got - piece).abs().max() <= step / 2 + rounding
        assert (got[piece == 0] == 0).all()


@some
@given(update=updates())
def test_blockwise_errs_by_at_most_half_a_step_of_its_block(update):
    got = sent("blockwise:bits=5,block=4", update)
    pairs = zip(update.vector.split(4), got.split(4), strict=True)
    for block, decoded in pairs:
        assert (decoded - block).abs().max() <= float(block.abs().max()) / 15 / 2 * 1.001


@some
@given(update=updates(magnitude=20.0))
def test_fixed_point_errs_by_half_a_unit_inside_and_saturates_outside(update):
    x = update.vector
    got = sent("fixed_point:bits=8,fraction=4", update)
    inside = (x >= -8) & (x <= 8 - 2**-4)
    assert ((got - x).abs()[inside] <= 2**-5).all()
    assert (got[x < -8] == -8).all()
    assert (got[x > 8 - 2**-4] == 8 - 2**-4).all()


@some
@given(update=updates())
def test_scaled_sign_error_identity(update):
    x = update.vector.double()
    nonzero = torch.where(x == 0, torch.full_like(x, 0.5), x)
    got = sent("scaled_sign:scope=global", Update(nonzero.float(), update.layout)).double()
    energy, total = nonzero.square().sum(), nonzero.abs().sum()
    exact = (1 - total**2 / (len(x) * energy)) * energy
    assert float((got - nonzero).square().sum()) == pytest.approx(
        float(exact), rel=1e-4, abs=1e-5 * float(energy)
    )


@pytest.mark.parametrize("base", [1.2, 2.0, 4.0])
@some
@given(update=updates())
def test_log_meets_its_relative_error_above_its_floor(base, update):
    bits = 8
    for piece in update.layout.split(update.vector):
        got = sent(f"log:base={base},bits={bits}", update_of(piece))
        floor = float(piece.abs().max()) * base ** -(2 ** (bits - 1) - 1.5) * 1.001
        error = (got - piece).abs()
        above = piece.abs() >= floor
        assert (error[above] <= piece.abs()[above] * (math.sqrt(base) - 1) * 1.0001).all()
        assert (error[~above] <= floor).all()
        assert (got[piece == 0] == 0).all()


@pytest.mark.parametrize("keep", [0.01, 0.25, 0.5, 1.0])
@some
@given(update=updates())
def test_topk_keeps_the_largest_and_meets_its_bound(keep, update):
    for piece in update.layout.split(update.vector):
        got = sent(f"topk:keep={keep}", update_of(piece))
        kept = got != 0
        count = math.ceil(keep * len(piece) - 1e-9)
        assert int(kept.sum()) <= count
        assert (got[kept] == piece[kept]).all()
        assert kept.any() == bool(piece.any())
        if int(kept.sum()) == count and not kept.all():
            assert piece[~kept].abs().max() <= piece[kept].abs().min()
        energy = float(piece.double().square().sum())
        error = float((got - piece).double().square().sum())
        assert error <= (1 - keep) * energy * (1 + 1e-6)


def test_topk_then_quantizer_equals_the_quantizer_on_what_is_kept():
    x = torch.randn(50, generator=seeded())
    kept = x.abs().topk(10).indices.sort().values
    inner = sent("uniform:bits=3", update_of(x[kept]))
    composed = sent("topk:keep=0.2+uniform:bits=3", update_of(x))
    assert torch.equal(composed[kept], inner)
    assert int((composed != 0).sum()) == 10


def test_topk_cell_bounds_what_was_dropped_by_the_least_kept():
    update = update_of([5.0, -3.0, 2.0, 0.5], [0.1, -0.4])
    quantizer = parse_quantizer("topk:keep=0.5")
    cell = quantizer.cell(quantizer.encode(update, seeded()))
    assert cell.upper.tolist() == pytest.approx([5.0, -3.0, 3.0, 3.0, 0.4, -0.4])
    assert cell.lower.tolist() == pytest.approx([5.0, -3.0, -3.0, -3.0, -0.4, -0.4])


@pytest.mark.parametrize("clusters", [2, 4, 16])
def test_kmeans_is_as_good_as_a_library_with_ten_starts(clusters):
    for x in (
        torch.randn(2000, generator=seeded()),
        torch.randn(2000, generator=seeded()) * torch.randn(2000, generator=seeded(1)).exp(),
    ):
        got = sent(f"kmeans:clusters={clusters}", update_of(x))
        library = KMeans(clusters, n_init=10, random_state=0).fit(x[:, None].numpy())
        assert float((got - x).square().sum()) <= 1.05 * library.inertia_
        assert got.unique().numel() == clusters


@some
@given(update=updates())
def test_kmeans_with_an_entry_an_element_is_exact(update):
    torch.testing.assert_close(sent("kmeans:clusters=32", update), update.vector)


def test_mixed_precision_gives_each_layer_its_bits():
    x = torch.randn(300, generator=seeded())
    update = Update(x, layout_of(100, 100, 100))
    got = sent("mixed:first=8,t2*=4,rest=2", update).split(100)
    for piece, decoded, bits in zip(x.split(100), got, (8, 2, 4), strict=True):
        assert torch.equal(decoded, sent(f"uniform:bits={bits}", update_of(piece)))
    with pytest.raises(ValueError, match="no tensor 'conv'"):
        parse_quantizer("mixed:conv=8,rest=2").encode(update, seeded())


@pytest.mark.parametrize("inner", ["sign", "scaled_sign", "topk:keep=0.1", "absmax:bits=2"])
def test_error_feedback_sends_all_but_the_last_residual(inner):
    quantizer = parse_quantizer(f"error_feedback({inner})")
    generator = seeded()
    layout = layout_of(40, 24)
    total, decoded, residual = torch.zeros(64), torch.zeros(64), None
    for _ in range(30):
        vector = torch.randn(64, generator=generator)
        payload, residual = quantizer.transmit(Update(vector, layout), residual, generator)
        total += vector
        decoded += quantizer.decode(payload).vector
    torch.testing.assert_close(decoded, total - residual, rtol=1e-4, atol=1e-3)


def test_other_quantizers_carry_no_residual():
    payload, residual = parse_quantizer("sign").transmit(update_of([1.0, -2.0]), None, seeded())
    assert residual is None
    assert payload.spec == "sign"


def test_stochastic_likelihood_is_that_of_the_rounding():
    """A quarter of the way up, the lower code is drawn three times in four."""
    quantizer = parse_quantizer("stochastic:levels=5")
    update = update_of([0.0, 4.0, 1.25])
    for seed in range(8):
        payload = quantizer.encode(update, seeded(seed))
        code = quantizer.decode(payload).vector[2]
        chance = 0.75 if code == 1.0 else 0.25
        penalty = quantizer.misfit(payload, update.vector)[2]
        assert float(penalty) == pytest.approx(-math.log(chance), rel=1e-4)


@pytest.mark.parametrize("spec", ["uniform:bits=1", "stochastic:bits=1"])
def test_a_range_beyond_float32_is_refused_by_the_encoder_not_the_receiver(spec):
    wide = update_of([3e38, -3e38, 1.0])
    with pytest.raises(ValueError, match="range is too wide"):
        sent(spec, wide)
    assert sent(spec, update_of([1e38, -1e38, 1.0])).isfinite().all()
