"""Typed, validated settings of a study: one frozen tree from a TOML file and the command line."""

import re
import tomllib
from collections.abc import Callable, Mapping
from itertools import product
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_origin

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from fl_sim.choices import (
    DATASET_NAMES,
    MAX_IMAGES,
    MAX_SUMMED,
    MODEL_NAMES,
    PARTITION_NAMES,
    SERVER_NAMES,
    Schedule,
    UpdateKind,
)
from fl_sim.registry import load_plugins, resolve
from fl_sim.specs import expand_sweeps
from fl_sim.suggestions import nearest, one_of

if TYPE_CHECKING:
    from fl_sim.updates.local_update import LocalWork

# Settings of steps that a client takes only if it sends a delta.
_DESCENT = (
    "local_momentum",
    "local_weight_decay",
    "local_schedule",
    "local_decay",
    "local_shuffle",
)
_NAMED_ROUNDS = {"first": 0.0, "middle": 0.5, "last": 1.0}


class SettingsError(ValueError):
    """A setting that cannot be used; one line names setting, value, what is allowed."""

    def __init__(self, setting: str, value: object, allowed: str) -> None:
        super().__init__(f"{setting} = {value!r}: {' '.join(allowed.split())}")


def split_list(value: object) -> Any:
    """Split ``a,b:x=1,y=2`` at its commas, but not inside a spec's parameters or brackets."""
    if not isinstance(value, str):
        return value
    parts: list[str] = []
    for part in value.split(","):
        continues = re.match(r"^[a-z_]+=", part) is not None
        if parts and (continues or _open(parts[-1])):
            parts[-1] += "," + part
        else:
            parts.append(part.strip())
    return tuple(parts)


def _open(text: str) -> bool:
    return any(text.count(left) > text.count(right) for left, right in ("()", "[]"))


def split_specs(value: object) -> Any:
    """Split a list of specs or numbers as `split_list` does, and expand its sweeps."""
    values = split_list(value)
    if not isinstance(values, list | tuple):
        return values
    return tuple(
        plain
        for one in values
        for plain in (expand_sweeps(one) if isinstance(one, str) else (one,))
    )


def _plugins(plugins: tuple[str, ...]) -> tuple[str, ...]:
    """Import plug-ins, before any other setting is read; a file is named by its absolute path."""
    found = tuple(str(Path(one).absolute()) if one.endswith(".py") else one for one in plugins)
    for plugin in found:
        try:
            load_plugins([plugin])
        except ValueError as error:
            raise SettingsError("plugin", plugin, str(error)) from error
    return found


def _part(kind: str, built_in: tuple[str, ...]) -> Callable[[str], str]:
    """Return a validator of the spec of a part; for the built-in ones nothing is imported."""

    def check(spec: str) -> str:
        if spec not in built_in:
            resolve(kind, spec)
        return spec

    return check


def _canonical_server(spec: str) -> str:
    from fl_sim.plans import parse_plan  # noqa: PLC0415 - PyTorch, not for --help

    return parse_plan(spec).spec


def _canonical_aggregation(spec: str) -> str:
    if spec == "plain":
        return spec
    from fl_sim.exchange.secure import parse_aggregation  # noqa: PLC0415 - not for --help

    parsed = parse_aggregation(spec)
    return "plain" if parsed is None else parsed.spec


def _canonical_quantizer(spec: str) -> str:
    from fl_sim.quantizers import parse_quantizer  # noqa: PLC0415 - PyTorch, not for --help

    parsed = parse_quantizer(spec)
    if not parsed.sent_by_clients:
        raise ValueError(f"no client sends {spec!r}: it is what a server makes of several payloads")
    return parsed.spec


def _canonical_quantizers(specs: tuple[str, ...]) -> tuple[str, ...]:
    canonical = tuple(_canonical_quantizer(spec) for spec in specs)
    for spec in canonical:
        if canonical.count(spec) > 1:
            raise SettingsError("quantizers", spec, "each quantizer only once")
    return canonical


def _metrics(specs: tuple[str, ...]) -> tuple[str, ...]:
    for spec in specs:
        resolve("metric", spec)
        if specs.count(spec) > 1:
            raise SettingsError("metrics", spec, "each metric only once")
    return specs


def _seed_list(value: object) -> Any:
    """Read one number as a list of one."""
    return (value,) if type(value) is int else split_specs(value)


def _spec_list(value: object) -> Any:
    """Read numbers in a list of specs, such as ``observe = [1]``, as what they are written as."""
    values = (value,) if type(value) is int else split_specs(value)
    if not isinstance(values, list | tuple):
        return values
    return tuple(str(one) if type(one) is int else one for one in values)


def split_numbers(value: object) -> Any:
    """Split ``0.5,0.25`` at its commas; read one number as a list of one."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return (value,) if type(value) in (int, float) else value


def _without_repeats(specs: tuple[str, ...]) -> tuple[str, ...]:
    """Return each spec once: a sweep that is added to a run may repeat some of what is there."""
    return tuple(dict.fromkeys(specs))


def _each_once(seeds: tuple[int, ...]) -> tuple[int, ...]:
    for seed in seeds:
        if seeds.count(seed) > 1:
            raise SettingsError("seeds", seed, "each seed only once")
    return seeds


def _load_tuned(value: object) -> object:
    """Read what attacks were tuned to from its file; a study may also hold it itself."""
    return _read_toml(Path(value), "tuned") if isinstance(value, str | Path) else value


def _canonical_tuned(tuned: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    return {
        attack: {_canonical_quantizer(quantizer): spec for quantizer, spec in specs.items()}
        for attack, specs in tuned.items()
    }


def _canonical_rules(rules: object) -> object:
    """Read the values of each rule as the settings they are held against; one value is a list."""
    if not isinstance(rules, list | tuple) or not all(isinstance(rule, dict) for rule in rules):
        raise SettingsError("exclude", rules, "tables of settings, as in [[exclude]]")
    return tuple(
        {name: _canonical_values(name, value) for name, value in rule.items()} for rule in rules
    )


def _canonical_values(name: str, value: object) -> tuple[object, ...]:
    plain = {key for key in option_fields() if is_axis(key)} | {"quantizers", "seeds"}
    if name not in plain:
        allowed = f"quantizers, seeds, or a setting with one value{nearest(name, plain)}"
        raise SettingsError("exclude", name, allowed)
    field = option_fields()[name][1]
    values = tuple(_expanded(name, value))
    try:
        if get_origin(field.annotation) is tuple:
            return _leaf_type(field).validate_python(values)  # type: ignore[no-any-return]
        return tuple(_leaf_type(field).validate_python(one) for one in values)
    except ValidationError as error:
        reason = _as_settings_error(error)
        raise SettingsError(f"exclude.{name}", value, str(reason).partition(": ")[2]) from error


Rules = Annotated[tuple[dict[str, tuple[Any, ...]], ...], BeforeValidator(_canonical_rules)]
Tuned = Annotated[
    dict[str, dict[str, str]], BeforeValidator(_load_tuned), AfterValidator(_canonical_tuned)
]
DatasetSpec = Annotated[str, AfterValidator(_part("dataset", DATASET_NAMES))]
PartitionSpec = Annotated[str, AfterValidator(_part("partitioner", PARTITION_NAMES))]
ModelName = Annotated[str, AfterValidator(_part("model", MODEL_NAMES))]
AggregationSpec = Annotated[str, AfterValidator(_canonical_aggregation)]
ServerSpec = Annotated[str, AfterValidator(_canonical_server)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(split_numbers)]
PluginList = Annotated[tuple[str, ...], BeforeValidator(split_list), AfterValidator(_plugins)]
MetricList = Annotated[tuple[str, ...], BeforeValidator(split_list), AfterValidator(_metrics)]
SpecList = Annotated[tuple[str, ...], BeforeValidator(_spec_list), Field(min_length=1)]
AttackList = Annotated[SpecList, AfterValidator(_without_repeats)]
QuantizerList = Annotated[SpecList, AfterValidator(_canonical_quantizers)]
SeedList = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=2**63)], ...],
    BeforeValidator(_seed_list),
    AfterValidator(_each_once),
    Field(min_length=1),
]


def _absolute(path: Path | None) -> Path | None:
    """Return a path as it stands, so that it means the same wherever it is read again."""
    return None if path is None else path.absolute()


def _absent_if_empty(path: object) -> object:
    """Return nothing for an empty text: TOML has no other word for it among several values."""
    return None if path == "" else path


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean(cls, value: object, info: ValidationInfo) -> object:
        """Refuse true and false where a number is meant; Python takes them for 1 and 0."""
        values = value if isinstance(value, list | tuple) else (value,)
        wants = cls.model_fields[info.field_name or ""].annotation
        if wants is not bool and any(type(one) is bool for one in values):
            raise SettingsError(str(info.field_name), value, "true or false is not allowed here")
        return value


class DataSettings(_Section):
    """Which images there are, and who holds them."""

    dataset: DatasetSpec = Field(
        "digits",
        description=f"Data set, 'digits' is bundled: {', '.join(DATASET_NAMES)}, or "
        "hub:name=OWNER/NAME.",
    )
    data_dir: Annotated[Path | None, AfterValidator(_absolute)] = Field(
        None, description="Folder of the images; torchvision data sets are downloaded to it."
    )
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="Share held out for testing, where no test split comes along."
    )
    public_fraction: float = Field(
        0.1, gt=0, lt=1, description="Share of the training images that nobody trains on (public)."
    )
    limit: int | None = Field(
        None, ge=1, description="Use at most this many images of the training and test split each."
    )
    clients: int = Field(10, ge=1, description="Number of clients, each with one partition.")
    partition: PartitionSpec = Field(
        "iid", description=f"How images are dealt to clients: {', '.join(PARTITION_NAMES)}."
    )
    alpha: float = Field(
        0.5, ge=1e-3, le=1e9, description="Concentration of the Dirichlet partition."
    )
    classes_per_client: int = Field(2, ge=1, description="Classes in a pathological partition.")


class TrainingSettings(_Section):
    """The federated optimization; the same for accuracy and for privacy."""

    update: UpdateKind = Field("gradient", description="gradient (FedSGD) or delta (FedAvg).")
    rounds: int = Field(200, ge=1, le=10**9, description="Training rounds.")
    evaluate_every: int = Field(
        1,
        ge=1,
        description="Rounds from one test of the model to the next; the first weights and the last "
        "are always tested.",
    )
    batch_size: int = Field(1, ge=1, le=MAX_IMAGES, description="Images in a client's batch.")
    plant_every: int = Field(
        1,
        ge=1,
        description="The server plants in the first of so many rounds; with more than 1, updates "
        "of planted rounds train nothing.",
    )
    fraction_train: float = Field(1.0, gt=0, le=1, description="Share of clients in a round.")
    local_learning_rate: float = Field(0.1, gt=0, description="Step size of local SGD (delta).")
    local_steps: int = Field(
        1, ge=1, le=MAX_IMAGES, description="Local SGD steps in a round (delta)."
    )
    local_batches: int | None = Field(
        None, ge=1, description="Distinct batches in a round; the local steps cycle through them."
    )
    local_momentum: float = Field(0.0, ge=0, lt=1, description="Momentum of local SGD (delta).")
    local_weight_decay: float = Field(0.0, ge=0, description="Weight decay of local SGD (delta).")
    local_schedule: Schedule = Field(
        "constant", description="How the step size falls over the local steps of a round (delta)."
    )
    local_decay: float = Field(
        1.0, gt=0, le=1, description="Factor of the local step size from round to round (delta)."
    )
    local_shuffle: bool = Field(
        False, description="Whether a client deals its images to batches anew each epoch (delta)."
    )
    normalize_mean: Numbers = Field(
        (),
        description="What clients subtract from the pixels, for all channels or each; or nothing.",
    )
    normalize_std: Numbers = Field(
        (), description="What clients then divide by, for all channels or each; or nothing."
    )
    quantize_statistics: bool = Field(
        False, description="Whether BatchNorm's running statistics are quantized as updates are."
    )
    example_clip: float = Field(
        0.0, ge=0, description="Norm to which clients clip each image's gradient (DP-SGD); 0: not."
    )
    fixed_batch: bool = Field(
        False, description="Whether a client uses the same images in every round."
    )
    server_optimizer: Literal["sgd", "adam"] = Field("adam", description="Server optimizer.")
    server_learning_rate: float = Field(
        0.003, ge=0, description="Step size of the server; 0 sends the same weights every round."
    )
    server_momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of the server's SGD.")
    aggregation: AggregationSpec = Field(
        "plain",
        description="How updates are added up: plain, or secagg+ (the server sees sums alone).",
    )
    timeout: float = Field(600.0, gt=0, le=1e9, description="Seconds to wait for a client's reply.")

    @model_validator(mode="after")
    def _check(self) -> "TrainingSettings":
        if (self.local_batches or 1) > self.local_steps:
            raise SettingsError(
                "local_batches", self.local_batches, f"at most local_steps, {self.local_steps}"
            )
        batches = self.local_batches or self.local_steps
        if self.update == "delta" and self.batch_size * batches > MAX_IMAGES:
            raise SettingsError(
                "batch_size",
                self.batch_size,
                f"{batches} local batches of it must be at most {MAX_IMAGES} images",
            )
        self._check_descent()
        if len(self.normalize_mean) != len(self.normalize_std):
            allowed = f"as many numbers as normalize_mean, {len(self.normalize_mean)}"
            raise SettingsError("normalize_std", _plain(self.normalize_std), allowed)
        if any(one <= 0 for one in self.normalize_std):
            raise SettingsError("normalize_std", _plain(self.normalize_std), "numbers above 0")
        return self

    def _check_descent(self) -> None:
        """Refuse what only local steps have where a client takes none."""
        if self.update == "delta":
            return
        for name in _DESCENT:
            usual = type(self).model_fields[name].default
            if getattr(self, name) != usual:
                allowed = f"{usual} with update = gradient, which takes no local steps; or delta"
                raise SettingsError(name, getattr(self, name), allowed)

    @property
    def work(self) -> "LocalWork":
        """Public facts of a client's work in one round."""
        from fl_sim.updates.local_update import LocalWork  # noqa: PLC0415 - PyTorch, not for --help

        facts: dict[str, Any] = {
            "fixed_batch": self.fixed_batch,
            "mean": self.normalize_mean,
            "std": self.normalize_std,
            "quantized_statistics": self.quantize_statistics,
            "example_clip": self.example_clip,
        }
        if self.update == "gradient":
            return LocalWork("gradient", self.batch_size, **facts)
        return LocalWork(
            "delta",
            self.batch_size,
            self.local_learning_rate,
            self.local_steps,
            self.local_batches or self.local_steps,
            momentum=self.local_momentum,
            weight_decay=self.local_weight_decay,
            schedule=self.local_schedule,
            decay=self.local_decay,
            shuffled=self.local_shuffle,
            **facts,
        )

    @property
    def facts(self) -> dict[str, Any]:
        """The settings by name, without those of clients that most do not depart from.

        So a setting that is added does not change the key of a run that does not use it.
        """
        recent = ("normalize_mean", "normalize_std", "quantize_statistics", "plant_every")
        later = (*_DESCENT, *recent, "aggregation", "example_clip", "evaluate_every")
        usual = {
            name: list(f.default) if isinstance(f.default, tuple) else f.default
            for name, f in type(self).model_fields.items()
            if name in later
        }
        tree = self.model_dump(mode="json")
        return {k: value for k, value in tree.items() if k not in usual or value != usual[k]}


class AuditSettings(_Section):
    """What the curious server keeps, and how it attacks it."""

    attacks: AttackList = Field(("dlg", "cell"), description="Attacks, by name.")
    observe: SpecList = Field(
        ("first", "middle", "last"),
        description="Observed rounds: first, middle, last, a number, or a percentage like 5%.",
    )
    victims: int = Field(10, ge=1, description="Clients attacked in each observed round, by seed.")
    metrics: MetricList = Field(
        (), description="Further metrics of reconstructed images; see docs/extending.md."
    )
    delta: float = Field(
        1e-5, gt=0, lt=1, description="Delta at which epsilon is given, for what guarantees one."
    )
    tuned: Tuned = Field({}, description="File of attacks tuned per quantizer; see `tune`.")

    def spec(self, attack: str, quantizer: str) -> str:
        """Return what an attack is built from: what it was tuned to on a quantizer, or itself."""
        return self.tuned.get(attack, {}).get(quantizer, attack)


class EngineSettings(_Section):
    """Where the clients and the attacks run; changes no result."""

    engine: Literal["local", "ray"] = Field("local", description="In-process, or Flower on Ray.")
    ray_address: str = Field("local", description="Address of a Ray cluster, or a fresh local one.")
    workers: int = Field(
        0, ge=0, description="Processes that train and attack side by side; 0: one per core."
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="Where attacks run; on a GPU in larger batches, by one process."
    )


class Settings(_Section):
    """One study: everything that determines its results."""

    plugin: PluginList = Field(
        (), description="Modules or files of your own parts; see docs/extending.md."
    )
    quantizers: Annotated[QuantizerList, Field(description="Quantizers to compare, by spec.")] = (
        "none",
        "uniform:bits=8",
        "uniform:bits=4",
        "uniform:bits=2",
        "stochastic:bits=4",
        "sign",
        "topk:keep=0.1",
    )
    seeds: Annotated[SeedList, Field(description="Seeds; every quantizer is run with each.")] = (0,)
    model: ModelName = Field(
        "lenet",
        description=f"Model: {', '.join(MODEL_NAMES)}, or torchvision:name=NAME.",
    )
    initial_weights: Annotated[
        Path | None, BeforeValidator(_absent_if_empty), AfterValidator(_absolute)
    ] = Field(
        None,
        description='Weights to start from, as `pretrain` writes them; drawn if absent or "".',
    )
    server: ServerSpec = Field(
        "curious", description=f"What the server does to its clients: {', '.join(SERVER_NAMES)}."
    )
    data: DataSettings = DataSettings()
    training: TrainingSettings = TrainingSettings()
    audit: AuditSettings = AuditSettings()
    engine: EngineSettings = EngineSettings()
    exclude: Rules = ()

    @model_validator(mode="after")
    def _check(self) -> "Settings":
        if self.data.dataset in ("folder", "parquet") and self.data.data_dir is None:
            allowed = f"dataset {self.data.dataset!r} needs the folder of its images"
            raise SettingsError("data_dir", None, allowed)
        if self.training.aggregation != "plain":
            self._check_sums()
        rounds = self.training.rounds
        for name in self.audit.observe:
            if not 1 <= _round_number(name, rounds) <= rounds:
                raise SettingsError("observe", name, f"a round from 1 to {rounds}")
        return self

    def _check_sums(self) -> None:
        """Refuse what cannot be added up, or whose sum is the update of no client."""
        training, clients = self.training, self.data.clients
        asked = ceil(training.fraction_train * clients)
        if not 2 <= asked <= MAX_SUMMED:
            allowed = f"2 to {MAX_SUMMED} of them in a round, for aggregation = 'secagg+'"
            raise SettingsError("clients", clients, f"{asked} would be in a round; give {allowed}")
        if training.update == "delta" and training.local_steps > 1:
            allowed = "1 for aggregation = 'secagg+', as sums of several steps cannot be attacked"
            raise SettingsError("local_steps", training.local_steps, allowed)
        if asked * training.batch_size > MAX_IMAGES:
            allowed = f"at most {MAX_IMAGES // asked}: a sum has the images of {asked} clients"
            raise SettingsError("batch_size", training.batch_size, allowed)

    @property
    def observed_rounds(self) -> tuple[int, ...]:
        """The 1-based rounds whose updates the server keeps, ascending, each once."""
        rounds = self.training.rounds
        return tuple(sorted({_round_number(name, rounds) for name in self.audit.observe}))

    @property
    def combinations(self) -> tuple[tuple[str, int], ...]:
        """Quantizer and seed of every trial: all of them, but for those that a rule excludes."""
        every = product(self.seeds, self.quantizers)
        return tuple((q, seed) for seed, q in every if not self._excludes(q, seed))

    def _excludes(self, quantizer: str, seed: int) -> bool:
        trial: dict[str, object] = {"quantizers": quantizer, "seeds": seed}
        return any(
            all(trial.get(name, self.value(name)) in values for name, values in rule.items())
            for rule in self.exclude
        )

    def value(self, name: str) -> object:
        """Return the value of a setting by its leaf name."""
        section = option_fields()[name][0]
        return getattr(self if section is None else getattr(self, section), name)


def _round_number(name: str, rounds: int) -> int:
    if name in _NAMED_ROUNDS:
        share = _NAMED_ROUNDS[name]
    elif match := re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]+)?)%", name):
        share = float(match[1]) / 100
    elif re.fullmatch("[0-9]{1,100}", name):
        return int(name)
    else:
        allowed = "first, middle, last, a round number, or a percentage like 5%"
        raise SettingsError("observe", name, allowed + nearest(name, _NAMED_ROUNDS))
    return max(1, round(1 + share * (rounds - 1)))


def option_fields() -> dict[str, tuple[str | None, FieldInfo]]:
    """Return every setting that the command line can override: name -> (section, field)."""
    options: dict[str, tuple[str | None, FieldInfo]] = {}
    for name, field in Settings.model_fields.items():
        section = _section_type(field)
        if section is not None:
            options.update({leaf: (name, f) for leaf, f in section.model_fields.items()})
        elif name != "exclude":
            options[name] = (None, field)
    return options


def _option(name: str, value: object) -> tuple[str | None, FieldInfo]:
    if name not in option_fields():
        raise SettingsError(name, value, f"no such setting{nearest(name, option_fields())}")
    return option_fields()[name]


def is_axis(name: str) -> bool:
    """Return whether a setting may have several values: one that changes results and is no list."""
    section, field = option_fields()[name]
    return section != "engine" and get_origin(field.annotation) not in (tuple, dict)


def read_tree(
    study: Path | None, overrides: Mapping[str, object], *, smoke: bool = False
) -> dict[str, Any]:
    """Return the plain tree of a study: its TOML file, its smoke size, then the overrides.

    Parameters
    ----------
    study : Path or None
        TOML file; sections and keys as in `Settings`, and a table ``smoke`` of values by leaf name.
        None: the defaults.
    overrides : Mapping[str, object]
        Values that win over the file, by leaf name, e.g. ``{"batch_size": "8"}``. Text with commas
        is several values.
    smoke : bool
        Whether the values of ``smoke`` win over the rest of the file.

    Raises
    ------
    SettingsError
        If the file cannot be read or parsed, or what a value overrides does not exist.
    """
    tree = {} if study is None else _read_toml(study)
    small = tree.pop("smoke", {})
    if not isinstance(small, dict):
        raise SettingsError("smoke", small, "a table of settings")
    if smoke and not small:
        raise SettingsError("smoke", str(study), "this study has no [smoke] table")
    unknown = sorted(small.keys() - option_fields().keys())
    if unknown:
        hint = nearest(unknown[0], option_fields())
        raise SettingsError(f"smoke.{unknown[0]}", small[unknown[0]], f"no such setting{hint}")
    for name, value in (small if smoke else {}).items():
        set_leaf(tree, name, value)
    for name, value in overrides.items():
        set_leaf(tree, name, _several(name, value))
    return tree


def set_leaf(tree: dict[str, Any], name: str, value: object) -> None:
    """Set a value of a plain tree by the leaf name of its setting."""
    section = _option(name, value)[0]
    target = tree if section is None else tree.setdefault(section, {})
    if not isinstance(target, dict):
        raise SettingsError(str(section), target, "a table of settings")
    target[name] = value


def axes_of(tree: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the settings of a plain tree that have several values, in the order of `Settings`.

    Raises
    ------
    SettingsError
        If a list has no values, or a sweep cannot be read.
    """
    axes: dict[str, list[Any]] = {}
    for name, (section, _) in option_fields().items():
        table = tree if section is None else tree.get(section)
        value = table.get(name) if isinstance(table, dict) else None
        if not is_axis(name):
            continue
        values = _expanded(name, value)
        if not values:
            raise SettingsError(name, [], "at least one value")
        if values != [value]:
            axes[name] = values
    return axes


def _expanded(name: str, value: object) -> list[Any]:
    """Return the values of a setting, its sweeps expanded; a path may look like a sweep."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    if option_fields()[name][1].annotation == Path | None:
        return values
    try:
        return list(split_specs(values))
    except ValueError as error:
        raise SettingsError(name, _plain(value), str(error)) from error


def load_settings(study: Path | None, overrides: Mapping[str, object]) -> Settings:
    """Build the settings of a study without axes; `read_tree` says from what.

    Raises
    ------
    SettingsError
        If the file cannot be read or parsed, a key is unknown, a value is not allowed, or a
        setting has several values.
    """
    tree = read_tree(study, overrides)
    for name, values in axes_of(tree).items():
        shown = ",".join(map(str, values))
        raise SettingsError(name, shown, "one value is needed here, as in one point of a study")
    return parse_settings(tree)


def parse_settings(tree: Mapping[str, Any]) -> Settings:
    """Validate a plain tree; raise `SettingsError` on the first value that is not allowed."""
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise _as_settings_error(error) from error


def dump_settings(settings: Settings) -> str:
    """Return the resolved settings as TOML that `load_settings` reads back to an equal tree."""
    return tomli_w.dumps(settings_tree(settings))


def settings_tree(settings: Settings) -> dict[str, Any]:
    """Return the resolved settings as a plain tree, as TOML can hold it."""
    tree = settings.model_dump(mode="json", exclude_none=True)
    tree["exclude"] = [
        {
            name: ["" if value is None else value for value in values]
            for name, values in rule.items()
        }
        for rule in tree["exclude"]
    ]
    if not settings.exclude:
        del tree["exclude"]
    return tree


def _read_toml(path: Path, setting: str = "study") -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError(setting, str(path), f"cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(setting, str(path), f"is not valid TOML: {error}") from error


def _as_settings_error(error: ValidationError) -> SettingsError:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, SettingsError):
        return cause
    if first["type"] == "extra_forbidden":
        valid = list(option_fields()) + list(Settings.model_fields)
        hint = nearest(str(first["loc"][-1]), valid)
        return SettingsError(place, first["input"], f"there is no such setting{hint}")
    if cause is not None:
        return SettingsError(place, _plain(first["input"]), str(cause))
    allowed = first["msg"]
    expected = first.get("ctx", {}).get("expected")
    if expected is not None and isinstance(first["input"], str):
        names = re.findall(r"'([^']*)'", expected)
        allowed = one_of(first["input"], names)
    return SettingsError(place, first["input"], allowed)


def _plain(value: object) -> object:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def _several(name: str, value: object) -> object:
    """Read text with commas as the values of an axis; a path may have commas of its own."""
    field = _option(name, value)[1]
    if (
        isinstance(value, str)
        and "," in value
        and is_axis(name)
        and field.annotation != Path | None
    ):
        values = split_list(value)
        return values if len(values) > 1 else value  # a spec may have commas as well
    return value


def _leaf_type(field: FieldInfo) -> "TypeAdapter[Any]":
    return TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type]


def _section_type(field: FieldInfo) -> type[_Section] | None:
    annotation = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, _Section):
        return annotation

    return None
