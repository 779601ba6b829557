"""What every quantizer promises, whatever its map."""

from collections.abc import Callable
from functools import partial
from math import log

import numpy as np
import torch
from torch import Tensor

from fl_sim.coding.cell import Cell
from fl_sim.coding.payload import Payload, PayloadError
from fl_sim.quantizers import Quantizer, parse_quantizer
from fl_sim.testing.contract import ContractError, make_twice, require
from fl_sim.updates.local_update import Layout, Segment, Update

_FORGERIES = 100
_OFF = 5e-5  # of a step, by which rounding of floats moves a value that a transform returns


def check_quantizer(quantizer: str | Quantizer) -> None:
    """Check that a quantizer keeps what every quantizer promises.

    Its spec parses back to it. The same update and seed give the same bytes, as many as
    ``body_size`` says, and these decode to a finite update. What was encoded and what is decoded
    lie in the cell, whose misfit is differentiable. Bytes that were cut or altered are refused, and
    forged ones decode to a finite update or are refused.

    Parameters
    ----------
    quantizer : str or Quantizer
        The quantizer, or the spec of one that is registered.

    Raises
    ------
    ContractError
        If a promise is not kept.
    ValueError
        If there is no such quantizer.

    Examples
    --------
    >>> from fl_sim.testing import check_quantizer
    >>> check_quantizer("uniform:bits=4")
    """
    if isinstance(quantizer, str):
        quantizer = parse_quantizer(quantizer)
    check_spec(quantizer)
    for update in sample_updates():
        check_bytes(quantizer, update)
        check_cell(quantizer, update)
        check_misfit(quantizer, update)
    check_another_update_misfits(quantizer)
    check_stacked_cells(quantizer)
    check_nonfinite_is_refused(quantizer)
    check_altered_bytes_are_refused(quantizer, _FORGERIES)
    check_forged_bodies(quantizer, _FORGERIES)


def sample_updates() -> list[Update]:
    """Return updates of several tensors: usual, of many orders of magnitude, constant, zero."""
    usual, other = normal(97, 0), normal(97, 1)
    values = (usual, usual * (3 * other).exp(), usual * 1e-6, usual.round(), usual * 0, usual**0)
    layout = layout_of(60, 7, 30)
    return [Update(one, layout) for one in values] + [Update(normal(1, 2), layout_of(1))]


def layout_of(*sizes: int) -> Layout:
    """Return the layout of flat tensors ``t0.weight``, ``t1.weight`` and so on."""
    return Layout(tuple(Segment(f"t{i}.weight", (size,)) for i, size in enumerate(sizes)))


def normal(size: int, seed: int) -> Tensor:
    """Return ``(size,)`` normal numbers that depend on the seed alone."""
    return torch.randn(size, generator=seeded(seed))


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator of a seed."""
    return torch.Generator().manual_seed(seed)


def check_spec(quantizer: Quantizer) -> None:
    """Check that the spec of a quantizer parses back to it."""
    parsed = parse_quantizer.__wrapped__(quantizer.spec)  # not the same object, from the cache
    require(
        parsed == quantizer and hash(parsed) == hash(quantizer) and parsed.spec == quantizer.spec,
        f"the spec {quantizer.spec!r} parses to another quantizer; is it a frozen dataclass?",
    )


def check_bytes(quantizer: Quantizer, update: Update) -> None:
    """Check the bytes of an update: repeatable, of the promised size, decoded to finite values."""
    name, given = quantizer.spec, update.vector.clone()
    payload, again = make_twice(f"{name}: encoding", lambda: quantizer.encode(update, seeded()))
    require(torch.equal(given, update.vector), f"{name}: encoding changes the update")
    data = payload.to_bytes()
    require(
        again.to_bytes() == data,
        f"{name}: the same update and seed give other bytes; draw from the given generator",
    )
    size = quantizer.body_size(update.layout)
    require(
        len(payload.body) == size,
        f"{name}: a body has {len(payload.body)} bytes; body_size says {size}",
    )
    received = Payload.from_bytes(data, update.layout)
    require(
        received == payload and received.to_bytes() == data and len(data) == payload.nbytes,
        f"{name}: a payload is another one after it was sent",
    )
    decoded, once_more = make_twice(f"{name}: decoding", lambda: quantizer.decode(received))
    vector = decoded.vector
    require(decoded.layout == update.layout, f"{name}: decodes to another layout")
    require(vector.dtype == torch.float32, f"{name}: decodes to {vector.dtype}, not to float32")
    require(vector.isfinite().all(), f"{name}: decodes to a value that is not finite")
    require(torch.equal(vector, once_more.vector), f"{name}: the same bytes decode differently")


def check_cell(quantizer: Quantizer, update: Update) -> None:
    """Check that the cell of an update holds the update, and what its bytes decode to."""
    name = quantizer.spec
    payload = quantizer.encode(update, seeded())
    cell = quantizer.cell(payload)
    tensors = (cell.center, cell.lower, cell.upper, cell.step)
    require(
        all(one.shape == (sum(cell.sizes),) for one in tensors),
        f"{name}: center, bounds and step of the cell do not have as many elements as its sizes",
    )
    require(
        (cell.step > 0).all() and cell.step.isfinite().all(),
        f"{name}: a step of the cell is not positive and finite",
    )
    require(
        ((cell.lower <= cell.center) & (cell.center <= cell.upper)).all(),
        f"{name}: a center of the cell is not within its bounds",
    )
    decoded = quantizer.decode(payload).vector
    around = torch.allclose(cell.decoded, decoded, rtol=1e-5, atol=1e-5)
    require(around, f"{name}: the cell is around other values than those decoded")
    # Noise or rounding after clipping may push what is decoded out of what clipping returns.
    impossible = False
    if cell.transform is not None:
        off = (cell.transform(decoded) - cell.center).abs() / cell.step
        impossible = bool(off.max() > _OFF)
    # Of random codes the value decoded need not be the likeliest, but at least half as likely.
    largest = log(2) if cell.noise == "discrete" else 1e-4
    require(
        impossible or cell.misfit(decoded).max() <= largest,
        f"{name}: the decoded update is not in its own cell",
    )
    value = cell.to_code_domain(update.vector)
    slack = 1e-2 * cell.step + 1e-6 * value.abs()
    inside = (value >= cell.lower - slack) & (value <= cell.upper + slack)
    require(inside.all(), f"{name}: the cell does not hold the update that was encoded")


def check_misfit(quantizer: Quantizer, update: Update) -> None:
    """Check that the misfit is differentiable, and grows outside the cell of an update."""
    name = quantizer.spec
    payload = quantizer.encode(update, seeded())
    cell = quantizer.cell(payload)
    if cell.transform is None and not cell.scale_free:
        additive = torch.tensor(cell.noise in ("gaussian", "laplace"))
        above = torch.where(cell.upper.isfinite(), cell.upper, cell.center) + 3 * cell.step
        bounded = cell.upper.isfinite() | additive
        if cell.certain is not None:
            bounded = bounded & ~(cell.certain & cell.upper.isinf())
        moves = above > cell.upper.clamp_max(3e38)  # at 2**24 steps from zero float32 cannot move
        grows = cell.misfit(above) > cell.misfit(cell.center)
        require(grows[bounded & moves].all(), f"{name}: the misfit does not grow outside the cell")
    largest = [one.abs().max().expand(one.shape) for one in update.layout.split(update.vector)]
    # Of the size of the update: at very many steps from the cell float32 overflows.
    candidate = 10 * torch.cat(largest) * torch.randn(3, update.layout.size, generator=seeded())
    candidate.requires_grad_()
    penalty = cell.misfit(candidate)
    require((penalty >= 0).all(), f"{name}: a misfit is negative or not a number")
    penalty.mean().backward()  # type: ignore[no-untyped-call]
    slope = candidate.grad
    require(
        slope is not None and slope.isfinite().all(), f"{name}: the misfit cannot be differentiated"
    )


def check_another_update_misfits(quantizer: Quantizer) -> None:
    """Check that another update than the one encoded has a larger misfit."""
    update = Update(normal(100, 1), layout_of(60, 40))
    cell = quantizer.cell(quantizer.encode(update, seeded()))
    own, other = cell.misfit(update.vector).mean(), cell.misfit(-10 * update.vector).mean()
    require(other > own, f"{quantizer.spec}: another update fits the bytes as well")


def check_stacked_cells(quantizer: Quantizer) -> None:
    """Check that cells of several payloads give the same misfits together as one by one."""
    layout = layout_of(9, 4, 7)
    vectors = torch.randn(3, 20, generator=seeded())
    payloads = [quantizer.encode(Update(v, layout), seeded(i)) for i, v in enumerate(vectors)]
    stacked = Cell.stack([quantizer.cell(payload) for payload in payloads])
    candidates = torch.randn(5, 3, 20, generator=seeded(7))
    together = stacked.misfit(candidates)
    for row, payload in enumerate(payloads):
        alone = quantizer.misfit(payload, candidates[:, row])
        decoded = quantizer.decode(payload).vector
        require(
            torch.allclose(together[:, row], alone, rtol=1e-3, atol=1e-5)
            and torch.allclose(stacked.decoded[row], decoded, rtol=1e-5, atol=1e-5),
            f"{quantizer.spec}: cells that are stacked give other misfits than alone",
        )
    require(
        stacked.misfit(candidates[0, 0]).shape == stacked.center.shape,
        f"{quantizer.spec}: one candidate does not broadcast over stacked cells",
    )


def check_nonfinite_is_refused(quantizer: Quantizer) -> None:
    """Check that an update with a value that is not finite is refused by the tensor's name."""
    for bad in (float("nan"), float("inf"), float("-inf")):
        vector = torch.tensor([1.0, 2.0, 3.0, 4.0, bad, 6.0, 1.0])
        try:
            quantizer.encode(Update(vector, layout_of(3, 3, 1)), seeded())
        except ValueError as error:
            named = "'t1.weight'" in str(error)
            require(named, f"{quantizer.spec}: the refusal of {bad} does not name the tensor")
        else:
            raise ContractError(f"{quantizer.spec}: an update with {bad} is encoded")


def check_altered_bytes_are_refused(quantizer: Quantizer, count: int) -> None:
    """Check that bytes of a payload, altered on the way, are refused; ``count`` alterations."""
    update = sample_updates()[0]
    data = quantizer.encode(update, seeded()).to_bytes()
    rng = np.random.default_rng(0)
    for _ in range(count):
        altered = alter(data, rng)
        reason = f"{quantizer.spec}: altered bytes are accepted"
        require(_refused(partial(Payload.from_bytes, altered, update.layout)), reason)
    foreign = Payload("another", bytes(quantizer.body_size(update.layout)), update.layout)
    reason = f"{quantizer.spec}: the payload of another quantizer is decoded"
    require(_refused(partial(quantizer.decode, foreign)), reason)


def check_forged_bodies(quantizer: Quantizer, count: int) -> None:
    """Check forged bodies with a right checksum; ``count`` forgeries.

    One of another length is refused. Any other decodes to a finite update, or is refused: whoever
    can forge one may send any update, but never crash anyone.
    """
    update = sample_updates()[0]
    body = quantizer.encode(update, seeded()).body
    rng = np.random.default_rng(1)
    constant = (fill * len(body) for fill in (b"\x00", b"\xff", b"\x7f"))
    for forged in (*constant, *(alter(body, rng) for _ in range(count))):
        payload = Payload(quantizer.spec, forged, update.layout, quantizer.version)
        if len(forged) != len(body):
            for read in (quantizer.decode, quantizer.cell):
                reason = f"{quantizer.spec}: a body of {len(forged)} bytes is read, not {len(body)}"
                require(_refused(partial(read, payload)), reason)
            continue
        try:
            decoded, cell = quantizer.decode(payload), quantizer.cell(payload)
        except PayloadError:
            continue
        require(
            decoded.vector.isfinite().all() and decoded.vector.shape == update.vector.shape,
            f"{quantizer.spec}: a forged body decodes to an update that is not finite",
        )
        require(
            not (cell.lower.isnan().any() or cell.upper.isnan().any()),
            f"{quantizer.spec}: the cell of a forged body has bounds that are not numbers",
        )


def alter(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip bits, overwrite, cut, pad or repeat a part; never returns ``data`` itself."""
    kind = rng.integers(6)
    at = int(rng.integers(len(data)))
    changed = bytearray(data)
    if kind == 0:
        changed[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        end = min(len(data), at + 1 + int(rng.integers(8)))
        changed[at:end] = bytes(byte ^ int(rng.integers(1, 256)) for byte in changed[at:end])
    elif kind == 2:
        del changed[at:]
    elif kind == 3:
        changed += rng.bytes(1 + int(rng.integers(64)))
    elif kind == 4:
        del changed[at : at + 1 + int(rng.integers(8))]
    else:
        changed[at:at] = rng.bytes(1 + int(rng.integers(8)))
    return bytes(changed)


def _refused(read: Callable[[], object]) -> bool:
    try:
        read()
    except PayloadError:
        return True
    return False
