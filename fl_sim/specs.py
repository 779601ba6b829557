"""Parameters of a quantizer between their text and their typed, validated values."""

from dataclasses import MISSING, Field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fl_sim.suggestions import one_of

_SMALLEST, _LARGEST = 1e-30, 1e30  # of scales: what float32 holds, with room for what they scale
NOT_A_PARAMETER = {"parameter": False}  # metadata of a field that no ``name=value`` sets


def within(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside ``[low, high]``."""
    if not low <= value <= high:
        raise ValueError(f"{name}={show(value)} is not allowed; give {show(low)} to {show(high)}.")


def positive(name: str, value: float) -> None:
    """Refuse a number that is not above zero, or that float32 cannot reckon with."""
    if not _SMALLEST <= value <= _LARGEST:
        allowed = f"a number above 0, from {show(_SMALLEST)} to {show(_LARGEST)}"
        raise ValueError(f"{name}={show(value)} is not allowed; give {allowed}.")


def show(value: object) -> str:
    """Return the shortest text that parses back to ``value``, free of ``+`` (it composes)."""
    if isinstance(value, float):
        return repr(value).removesuffix(".0").replace("e+", "e")
    return str(value)


def print_parameters(quantizer: object) -> str:
    """Return ``name=value,...`` of the fields that are not at their default."""
    given = ((f, getattr(quantizer, f.name)) for f in _fields(type(quantizer)))
    return ",".join(f"{f.name}={show(value)}" for f, value in given if value != f.default)


def parse_parameters(kind: type, text: str) -> dict[str, Any]:
    """Parse ``name=value,...`` to keyword arguments of dataclass ``kind``.

    Raises
    ------
    ValueError
        If a parameter is unknown, missing, given twice, or not of its type.
    """
    names = [f.name for f in _fields(kind)]
    types = get_type_hints(kind)
    values: dict[str, Any] = {}
    for item in text.split(",") if text else []:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"{item!r} is not of the form name=value.")
        if name not in names:
            raise ValueError(f"no parameter {name!r}; {one_of(name, names)}")
        if name in values:
            raise ValueError(f"{name} is given twice.")
        values[name] = _convert(name, value, types[name])
    for field in _fields(kind):
        if field.default is MISSING and field.name not in values:
            raise ValueError(f"parameter {field.name} is missing.")
    return values


def _fields(kind: type) -> tuple[Field[Any], ...]:
    return tuple(f for f in fields(kind) if f.metadata.get("parameter", True))


def _convert(name: str, text: str, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ValueError(f"{name}={text} is not allowed; {one_of(text, get_args(kind))}")
        return text
    number = next(k for k in (float, int) if k is kind or k in get_args(kind))
    try:
        return number(text)
    except ValueError as error:
        wanted = "a whole number" if number is int else "a number"
        raise ValueError(f"{name}={text} is not {wanted}.") from error
