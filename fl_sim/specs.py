"""Spec strings: how a part is named with its parameters, and the values and sweeps of these."""

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from inspect import signature
from itertools import product
from math import isfinite, prod
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fl_sim.suggestions import one_of

_SMALLEST, _LARGEST = 1e-30, 1e30  # of scales: what float32 holds, with room for what they scale
INNER = "of"  # parameter of a part that wraps another: the spec of that
_KINDS: Mapping[Any, Callable[[str], Any]] = {int: int, float: float, str: str}
NOT_A_PARAMETER = {"parameter": False}  # metadata of a field that no ``name=value`` sets

SWEEPS = "low..high for whole numbers, low..high/lin5, low..high/log5, or [a,b,c]"
"""The forms of a sweep."""
MAX_SWEEP = 1000
"""Values in one sweep, and specs that the sweeps of one spec multiply to, at most."""

_NUMBER = r"[+-]?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(?:/(lin|log)([0-9]{{1,6}}))?")
_SWEEP_START = re.compile(rf"\[|{_NUMBER}\.\.")
_VALUE = re.compile(r"(?<==)(\[[^\]]*\]?|[^,+()]*)")


def within(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside ``[low, high]``."""
    if not low <= value <= high:
        raise ValueError(f"{name}={show(value)} is not allowed; give {show(low)} to {show(high)}.")


def positive(name: str, value: float) -> None:
    """Refuse a number that is not above zero, or that float32 cannot reckon with."""
    if not _SMALLEST <= value <= _LARGEST:
        allowed = f"a number above 0, from {show(_SMALLEST)} to {show(_LARGEST)}"
        raise ValueError(f"{name}={show(value)} is not allowed; give {allowed}.")


def not_negative(name: str, value: float) -> None:
    """Refuse a number below zero, or that float32 cannot reckon with."""
    within(name, value, 0, _LARGEST)


def show(value: object) -> str:
    """Return the shortest text that parses back to ``value``, free of ``+`` (it composes)."""
    if isinstance(value, float):
        return repr(value).removesuffix(".0").replace("e+", "e")
    return str(value)


@dataclass(frozen=True)
class Spec:
    """A spec string in its parts: ``name:parameter=value,...(inner)``.

    Attributes
    ----------
    name : str
        Name of the part.
    parameters : str
        ``parameter=value,...``, or empty.
    inner : str or None
        Spec of the part that this one wraps.
    """

    name: str
    parameters: str
    inner: str | None

    @classmethod
    def parse(cls, text: str) -> "Spec":
        """Split a spec string.

        Raises
        ------
        ValueError
            If its parentheses do not match.
        """
        outer, opening, rest = text.strip().partition("(")
        if rest.endswith(")") != bool(opening) or text.count("(") != text.count(")"):
            raise ValueError(f"the parentheses of {text!r} do not match")
        name, _, parameters = outer.partition(":")
        return cls(name, parameters, rest.removesuffix(")") if opening else None)

    def __str__(self) -> str:
        parameters = f":{self.parameters}" if self.parameters else ""
        return self.name + parameters + ("" if self.inner is None else f"({self.inner})")

    def edited(self, values: Mapping[str, str]) -> "Spec":
        """Return the spec with other values of some parameters."""
        every = {**split_parameters(self.parameters), **values}
        return replace(self, parameters=",".join(map("=".join, every.items())))


def expand_sweeps(text: str) -> tuple[str, ...]:
    """Return the plain specs that a spec with sweeps stands for; a plain spec is the only one.

    A sweep stands where a value stands: ``low..high`` counts in whole numbers, ``low..high/lin5``
    and ``low..high/log5`` give five values at equal distances or ratios (rounded to six and three
    digits), ``[a,b,c]`` lists values and further sweeps. Several sweeps are multiplied. A text that
    is a sweep as a whole, such as ``0..4`` for seeds, is its values.

    Raises
    ------
    ValueError
        If a sweep has another form, its ends are in the wrong order, or it has too many values.

    Examples
    --------
    >>> from fl_sim.specs import expand_sweeps
    >>> expand_sweeps("topk:keep=0.01..1/log3")
    ('topk:keep=0.01', 'topk:keep=0.1', 'topk:keep=1')
    """
    if _SWEEP_START.match(text):
        return _swept("", text)
    pieces = _VALUE.split(text)  # text and values in turn
    values = [
        _swept(before.rpartition(",")[2].rpartition(":")[2], value)
        for before, value in zip(pieces[::2], pieces[1::2], strict=False)
    ]
    if prod(map(len, values)) > MAX_SWEEP:
        raise ValueError(f"{text} stands for more than {MAX_SWEEP} specs.")
    return tuple(
        "".join(map("".join, zip(pieces[::2], (*chosen, ""), strict=True)))
        for chosen in product(*values)
    )


def _swept(label: str, text: str) -> tuple[str, ...]:
    """Return the values of a sweep, or a plain value alone; ``label`` is ``name=`` or empty."""
    if not _SWEEP_START.match(text):
        return (text,)
    fault = f"{label}{text} is not allowed; "
    if text.startswith("["):
        items = text.removeprefix("[").removesuffix("]").split(",")
        if not text.endswith("]") or not all(items) or any("[" in item for item in items):
            raise ValueError(f"{fault}give {SWEEPS}.")
        return tuple(value for item in items for value in _swept(label, item.strip()))
    parts = _RANGE.fullmatch(text)
    if parts is None or not all(isfinite(float(end)) for end in parts.groups()[:2]):
        raise ValueError(f"{fault}give {SWEEPS}.")
    low, high, scale, count = parts.groups()
    if scale is None and not all(end.lstrip("+-").isdigit() for end in (low, high)):
        raise ValueError(f"{fault}give whole numbers, or the number of values as in /log5.")
    if float(low) >= float(high):
        raise ValueError(f"{fault}give the lower end first.")
    if scale == "log" and float(low) <= 0:
        raise ValueError(f"{fault}give ends above 0.")
    values = int(high) - int(low) + 1 if scale is None else int(count)
    if not 2 <= values <= MAX_SWEEP:
        raise ValueError(f"{fault}give 2 to {MAX_SWEEP} values.")
    if scale is None:
        return tuple(map(str, range(int(low), int(high) + 1)))
    spaced = _spaced(float(low), float(high), values, scale)
    if len(set(spaced)) < values:
        raise ValueError(f"{fault}give fewer values: some are equal once they are rounded.")
    return spaced


def _spaced(low: float, high: float, count: int, scale: str) -> tuple[str, ...]:
    """Return ``count`` numbers; rounded, so that every processor names the same."""
    digits, shares = (3, 6)[scale == "lin"], [k / (count - 1) for k in range(count)]
    if scale == "log":
        spaced = [low * (high / low) ** share for share in shares]
    else:
        spaced = [low + (high - low) * share for share in shares]
    rounded = [float(f"{value:.{digits}g}") for value in spaced]
    return tuple(map(show, (low, *rounded[1:-1], high)))


@dataclass(frozen=True)
class _Parameter:
    name: str
    kind: Any
    default: Any


def print_parameters(part: object) -> str:
    """Return ``name=value,...`` of the fields of a dataclass that are not at their default."""
    given = ((p, getattr(part, p.name)) for p in _parameters(type(part)))
    return ",".join(f"{p.name}={show(value)}" for p, value in given if value != p.default)


def split_parameters(text: str) -> dict[str, str]:
    """Split ``name=value,...`` into names and the texts of their values.

    Raises
    ------
    ValueError
        If an item has another form, or a name is given twice.
    """
    values: dict[str, str] = {}
    for item in text.split(",") if text else []:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"{item!r} is not of the form name=value.")
        if name in values:
            raise ValueError(f"{name} is given twice.")
        values[name] = value
    return values


def default_parameters(part: Any) -> dict[str, Any]:
    """Return the parameters of a part that have a default, with it."""
    return {p.name: p.default for p in _parameters(part) if p.default is not MISSING}


def parse_parameters(part: Any, text: str, inner: str | None = None) -> dict[str, Any]:
    """Parse ``name=value,...`` to keyword arguments of a part.

    Parameters
    ----------
    part : type, callable or tuple of these
        A dataclass, whose fields are its parameters, or a callable, whose keyword-only arguments
        are. Annotations tell their types: int, float, str or a Literal of strings. The parameters
        of several parts are taken together.
    text : str
        The part of a spec after its colon.
    inner : str, optional
        What stands in parentheses; a part that wraps another has a parameter ``of`` for it.

    Raises
    ------
    ValueError
        If a parameter is unknown, missing, given twice, or not of its type.
    """
    known = {parameter.name: parameter for parameter in _parameters(part)}
    wraps = known.pop(INNER, None)
    if (wraps is None) != (inner is None):
        fault = "a spec in parentheses is missing" if wraps else "it wraps no other part"
        raise ValueError(f"{fault}.")
    values: dict[str, Any] = {} if inner is None else {INNER: inner}
    for name, value in split_parameters(text).items():
        if name not in known:
            raise ValueError(f"no parameter {name!r}; {one_of(name, known)}")
        values[name] = _convert(name, value, known[name].kind)
    for parameter in known.values():
        if parameter.default is MISSING and parameter.name not in values:
            raise ValueError(f"parameter {parameter.name} is missing.")
    return values


def _parameters(part: Any) -> list[_Parameter]:
    if isinstance(part, tuple):
        return [parameter for one in part for parameter in _parameters(one)]
    if is_dataclass(part):
        kinds = get_type_hints(part)
        own = [field for field in fields(part) if field.metadata.get("parameter", True)]
        return [_Parameter(field.name, kinds[field.name], field.default) for field in own]
    function = part.__init__ if isinstance(part, type) else part  # type: ignore[misc]
    if not hasattr(function, "__annotations__"):
        return []
    kinds = get_type_hints(function)
    return [
        _Parameter(p.name, kinds.get(p.name, str), MISSING if p.default is p.empty else p.default)
        for p in signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    ]


def _convert(name: str, text: str, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ValueError(f"{name}={text} is not allowed; {one_of(text, get_args(kind))}")
        return text
    kind = next((k for k in (float, int, str) if k is kind or k in get_args(kind)), None)
    try:
        return _KINDS[kind](text)
    except KeyError:
        raise ValueError(f"{name} cannot be set in a spec.") from None
    except ValueError as error:
        wanted = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name}={text} is not {wanted}.") from error
