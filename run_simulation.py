"""The command line: train, attack and report a study; thin, the work is done by the packages."""

import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, get_args, get_origin

import click
import rich
import typer
import typer.core
from pydantic.fields import FieldInfo
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fl_sim.engines.interrupts import KEPT, Interrupted, WorkerLostError, interruptible
from fl_sim.engines.process import keep_freed_memory
from fl_sim.registry import PartError
from fl_sim.storage.files import StoreError
from fl_sim.storage.lock import holder
from fl_sim.storage.logs import log_file
from fl_sim.study.settings import SettingsError, load_settings, option_fields, split_list
from fl_sim.suggestions import one_of

if TYPE_CHECKING:
    from fl_sim.study.study import Study

typer.core.HAS_RICH = False  # else plain help shows what is escaped for rich, as in \[required]


class _Lists(click.Command):
    """A command that takes lists as ``A,B``: of a list given twice, the first would be lost."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse lists that are given twice; of other options the last one counts."""
        given = self.make_parser(ctx).parse_args(args=list(args))[2]
        lists = [one.opts[0] for one in given if str(one.metavar).endswith(",...")]
        for name in lists:
            if lists.count(name) > 1:
                raise click.UsageError(f"{name} is given twice; several values are one list, A,B")
        return super().parse_args(ctx, args)


class _Command(_Lists, typer.core.TyperCommand): ...


class _Group(_Lists, typer.core.TyperGroup): ...


cli = typer.Typer(cls=_Group, rich_markup_mode=None, pretty_exceptions_enable=False)

_HERE = Path(__file__).parent
STUDIES = _HERE / "studies" if (_HERE / "studies").is_dir() else _HERE / "fl_sim" / "studies"
"""The studies that come along: of the checkout, or of the installed package."""
VERSION = "0.1.0"
LOG = "log.jsonl"
STEPS = ("trained", "attacked", "scored")
DEFAULT_SWEEP = ("tv=1e-4,1e-3,1e-2,1e-1",)

_METAVARS: dict[Any, str] = {
    int: "INTEGER",
    float: "NUMBER",
    bool: "true|false",
    str: "NAME",
    Path: "PATH",
    dict: "FILE",
}

Quiet = Annotated[bool, typer.Option("--quiet", help="Show errors only, and no progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs to read.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show every event of the log.")]
Workers = Annotated[
    str, typer.Option(help="Processes side by side; 0: one per core.", metavar="INTEGER")
]
RunArgument = Annotated[Path, typer.Argument(help="Folder of a run or study, e.g. runs/default.")]


def _example(arguments: str) -> str:
    return f"\b\nExample:\n  run_simulation.py {arguments}"


def command(example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a command whose help ends with an example, and is listed with its whole first line."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        listed = cli.command(cls=_Command, short_help=function.__doc__, epilog=_example(example))
        return listed(function)

    return add


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each setting; it receives those given as ``overrides``."""
    options = option_fields()

    def run(**values: Any) -> None:
        names = options.keys() & values.keys()
        overrides = {name: values.pop(name) for name in names}
        given = {name: value for name, value in overrides.items() if value is not None}
        command(overrides=given, **values)

    own = [p for p in inspect.signature(command).parameters.values() if p.name != "overrides"]
    flags = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                str | None,
                typer.Option(
                    f"--{name.replace('_', '-')}",
                    help=_help(field),
                    metavar=_metavar(field.annotation),
                ),
            ],
        )
        for name, (_, field) in options.items()
    ]
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    run.__signature__ = inspect.Signature(keyword + flags)  # type: ignore[attr-defined]
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run


def _help(field: FieldInfo) -> str:
    """Return what a setting is, and its value where neither study nor command line gives one."""
    value = field.default
    if value in (None, (), {}):
        return f"{field.description}"
    shown = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"{field.description} [default: {shown.lower() if value is False else shown}]"


def _metavar(kind: Any) -> str:
    """Return the choices of a setting, or what kind of value it has."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "|".join(parts)
    if origin is tuple:
        return f"{_metavar(parts[0])},..."
    if parts and origin is not dict:  # annotated, or optional
        return _metavar(parts[0])
    return _METAVARS[origin or kind]


LogTo = Annotated[str, typer.Option(help="Log figures below the run for tensorboard or mlflow.")]


def _print_version(asked: bool) -> None:
    if asked:
        print(f"fl-sim {VERSION}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version."),
]


@cli.callback(
    invoke_without_command=True,
    epilog=_example("--quantizers none,uniform:bits=4,sign --attacks dlg,cell --seeds 0,1,2"),
)
@with_settings
def run(
    context: typer.Context,
    study: Annotated[
        Path, typer.Option(help="TOML file of a study, or the name of one that comes along.")
    ] = Path("default"),
    out: Annotated[str | None, typer.Option(help="Output folder; runs/<study> if absent.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="The study's size for seconds.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Do finished work again.")] = False,
    log_to: LogTo = "",
    quiet: Quiet = False,
    verbose: Verbose = False,
    version: Version = False,  # noqa: ARG001 - its callback has answered it
    *,
    overrides: dict[str, str],
) -> None:
    """Train every trial of a study, attack what the server observed, and report.

    A default in brackets holds where the study does not say otherwise. Several values of a
    setting, as in --batch-size 1,4, are a run for each.
    """
    if context.invoked_subcommand is not None:
        return
    from fl_sim.study.study import load_study  # noqa: PLC0415 - torch and Flower, not for --help

    path = _study_file(study)
    _check_tool(log_to)
    asked = load_study(path, overrides, smoke=smoke)
    _check_metrics(asked)
    root = Path("runs") / (path.stem + ("-smoke" if smoke else "")) if out is None else _folder(out)
    _start_fork_server(asked)
    from server import study as server  # noqa: PLC0415 - torch and Flower, not for --help

    server.check_study(asked)
    with _writing(asked, root, quiet, verbose):
        if force:
            for folder in asked.folders(root):
                folder.delete_outputs()
        _work(asked, root, training=True)
        _log(asked, root, log_to)
    _require_trained(asked, root, f"failed, see {root / LOG}")


def _folder(out: str) -> Path:
    if not out.strip():
        raise SettingsError("out", out, "the name of a folder")
    return Path(out)


def _read_kept(run: Path) -> "Study":
    """Return the study of a folder; raise `SettingsError` if what it holds of people was purged."""
    from fl_sim.study.study import read_study  # noqa: PLC0415

    study = read_study(run)
    for folder in study.folders(run):
        folder.require_kept()
    return study


def _study_file(study: Path) -> Path:
    """Return the file of a study that is named by its path, or as one of `STUDIES`."""
    named = {path.stem: path for path in sorted(STUDIES.rglob("*.toml"))}
    if study.is_file() or str(study) not in named:
        return study
    return named[str(study)]


@command("attack runs/default --attacks suite")
def attack(
    run: RunArgument,
    attacks: Annotated[str, typer.Option(help="Attacks to add, by name.", metavar="NAME,...")] = "",
    tuned: Annotated[str, typer.Option(help="File that `tune` wrote.")] = "",
    plugin: Annotated[
        str, typer.Option(help="Modules or files of attacks of your own.", metavar="NAME,...")
    ] = "",
    workers: Annotated[
        str, typer.Option(help="Processes side by side; 0: one per core.", metavar="INTEGER")
    ] = "0",
    device: Annotated[str, typer.Option(help="Where attacks run.", metavar="cpu|cuda")] = "cpu",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Attack again what a run observed, with further attacks."""
    from fl_sim.study.runs import RunFolder  # noqa: PLC0415
    from fl_sim.study.study import load_study  # noqa: PLC0415

    known = _read_kept(run).points[0].settings
    given = {
        "workers": workers,
        "device": device,
        "attacks": _added(known.audit.attacks, attacks),
        "tuned": tuned,
        "plugin": _added(known.plugin, plugin),
    }
    overrides = {name: value for name, value in given.items() if value}
    study = load_study(RunFolder(run).settings_file, overrides)
    _start_fork_server(study)
    from server import study as server  # noqa: PLC0415

    server.check_study(study)
    with _writing(study, run, quiet, verbose):
        _work(study, run, training=False)
    again = f"--study {RunFolder(run).settings_file} --out {run} trains them again"
    reason = "were not attacked, as other code, data or settings trained them"
    _require_trained(study, run, f"{reason}; {again}")


def _added(known: tuple[str, ...], added: str) -> tuple[str, ...]:
    """Return a list with the values of another, each once."""
    return tuple(dict.fromkeys((*known, *(split_list(added) if added else ()))))


@command("reproduce runs/default")
def reproduce(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option(help="New folder; RUN-again if absent.")] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a run again from its settings, and compare every table, observation and picture."""
    from results.reproduction import differences, outputs  # noqa: PLC0415

    study = _read_kept(run)
    again = out or run.with_name(f"{run.resolve().name}-again")
    if again.exists():
        raise SettingsError("out", str(again), "exists already; a new folder is needed")
    with _writing(study, again, quiet, verbose):
        _work(study, again, training=True)
    found = differences(run, again)
    if found:
        print(*found, sep="\n")
        raise UnfinishedError(f"{len(found)} of {len(outputs(run, again))} files differ")
    print(f"identical: {len(outputs(run))} files of {run} and {again}")


@command("status runs/default --json")
def status(run: RunArgument, as_json: Json = False) -> None:
    """Show what of a run is done, what the same command would still do, and who is at it."""
    from fl_sim.study.provenance import describe, read_sessions  # noqa: PLC0415
    from fl_sim.study.study import read_study  # noqa: PLC0415
    from results.reading.status import progress  # noqa: PLC0415

    frame = progress(run)
    left = {step: int((frame[f"of_{step}"] - frame[step]).sum()) for step in STEPS}
    folders = read_study(run).folders(run)
    purged = {str(folder.root): folder.purged for folder in folders if folder.purged}
    sessions = read_sessions(folders[0])
    at_work = holder(run)
    if as_json:
        last = sessions[-1] if sessions else None
        rows = frame.to_dict("records")
        facts = {"purged": purged, "last_session": last, "at_work": at_work}
        _print_json({"done": rows, "left": left, **facts})
        return
    table = Table(box=SIMPLE_HEAD)
    for column in ("point", "quantizer", *STEPS):
        table.add_column(column, justify="right" if column in STEPS else "left", overflow="fold")
    for _, row in frame.iterrows():
        counts = (f"{row[step]} of {row['of_' + step]}" for step in STEPS)
        table.add_row(Text(row["point"]), Text(row["quantizer"]), *counts)
    if not frame["point"].any():
        table.columns.pop(0)
    console = Console()
    console.print(table)
    todo = ", ".join(f"{count} to be {step}" for step, count in left.items() if count)
    console.print(f"Left: {todo or 'nothing'}.", highlight=False)
    for root, day in purged.items():
        console.print(Text(f"{root}: purged on {day}."))
    if sessions:
        console.print(f"Last session: {describe(sessions[-1])}", highlight=False)
    if at_work:
        console.print(f"At work: {at_work}.", highlight=False)


@command("tune runs/default --attacks cell --sweep tv=1e-4,1e-3")
def tune(
    run: RunArgument,
    attacks: Annotated[
        str,
        typer.Option(help="Attacks to tune; those of the run if absent.", metavar="NAME,..."),
    ] = "",
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="Values to try, as in tv=1e-3,1e-2; more of these are combined."),
    ] = None,
    victims: Annotated[str, typer.Option(help="Held-out victims in each observed round.")] = "8",
    workers: Annotated[
        str, typer.Option(help="Processes side by side; 0: one per core.", metavar="INTEGER")
    ] = "0",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Tune attacks for each quantizer on public images; RUN/tuned.toml is for --tuned."""
    from fl_sim.study.runs import RunFolder  # noqa: PLC0415
    from results.scores.scoring import score_batch  # noqa: PLC0415
    from server.auditing import tuning  # noqa: PLC0415

    folder, study = RunFolder(run), _read_kept(run)
    given = {"workers": workers, "victims": victims, "attacks": attacks}
    overrides = {name: value for name, value in given.items() if value}
    settings = load_settings(folder.settings_file, overrides)
    swept = tuning.parse_sweep(sweep or DEFAULT_SWEEP)
    with _writing(study, run, quiet, verbose):
        tried = tuning.tune(settings, folder, swept, score_batch)
    print(tried.to_string(index=False, float_format="{:.2f}".format))
    print(f"written to {folder.tuned_file}")


@command("report runs/default --format svg,tex")
def report(
    run: RunArgument,
    formats: Annotated[
        str,
        typer.Option("--format", help="Write figures and tables as png,svg,pdf,parquet,md,tex."),
    ] = "",
    log_to: LogTo = "",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make tables, curves and pictures of a run again."""
    from results.exports import FORMATS, export  # noqa: PLC0415

    chosen = [name for name in formats.split(",") if name]
    for name in chosen:
        if name not in FORMATS:
            raise SettingsError("format", name, one_of(name, FORMATS))
    _check_tool(log_to)
    study = _read_kept(run)
    with _writing(study, run, quiet, verbose):
        _report(run)
        export(run, chosen)
        _log(study, run, log_to)


@command("compare runs/default runs/error_feedback")
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders of runs and studies, or two files card.json of runs."),
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("runs/comparison.html"),
    as_json: Json = False,
) -> None:
    """Write one page over several runs; of two cards, print which figures differ.

    Two figures differ if their 95 % intervals are apart. With cards, the exit status is 0 if all
    figures agree, 1 if some differ, and 3 if settings differ, so that they cannot be compared.
    """
    if any(path.suffix == ".json" for path in runs):
        _compare_cards(runs, as_json)
    if as_json:
        raise SettingsError("json", "true", "is for cards; folders of runs are compared on a page")
    from results.page.report import compare as compare_runs  # noqa: PLC0415

    compare_runs(runs, out)
    print(out)


def _compare_cards(paths: list[Path], as_json: bool) -> NoReturn:
    from results.card import read_card  # noqa: PLC0415
    from results.card_comparison import compare_cards, print_comparison  # noqa: PLC0415

    if len(paths) != 2:
        raise SettingsError("card", ", ".join(map(str, paths)), "two cards, and nothing else")
    made = compare_cards(*map(read_card, paths))
    if as_json:
        _print_json(asdict(made) | {"status": made.status})
    else:
        print_comparison(made, (str(paths[0]), str(paths[1])), Console())
    raise typer.Exit(made.status)


@command("purge runs/default")
def purge(
    run: RunArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete what a run holds of people: observations, reconstructions, pictures; keep tables."""
    from fl_sim.study import purge as private  # noqa: PLC0415
    from fl_sim.study.study import read_study  # noqa: PLC0415

    study = read_study(run)
    roots = [run, *(folder.root for folder in study.folders(run))]
    with study.locked(run):
        paths = private.private_paths(roots)
        for path in paths:
            print(path)
        if not paths:
            print("nothing to delete")
        elif yes or typer.confirm("Delete all of these for good?", err=True):
            private.purge(paths)
            print(f"{len(paths)} deleted")


@command("pretrain weights/digits.safetensors --model convnet --epochs 12")
def pretrain(
    out: Annotated[Path, typer.Argument(help="File of the weights, *.safetensors.")],
    model: Annotated[str, typer.Option(help="Model, as in a study.", metavar="NAME")] = "lenet",
    dataset: Annotated[
        str, typer.Option(help="Data set, as in a study.", metavar="NAME")
    ] = "digits",
    data_dir: Annotated[str, typer.Option(help="Folder of the images.", metavar="PATH")] = "",
    seed: Annotated[str, typer.Option(help="Of all random draws.", metavar="INTEGER")] = "0",
    normalize_mean: Annotated[str, typer.Option(help="As in a study.", metavar="NUMBER,...")] = "",
    normalize_std: Annotated[str, typer.Option(help="As in a study.", metavar="NUMBER,...")] = "",
    plugin: Annotated[
        str, typer.Option(help="Modules or files of parts of your own.", metavar="NAME,...")
    ] = "",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.")] = 12,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a step.")] = 128,
    learning_rate: Annotated[float, typer.Option(min=1e-9, help="Highest step size.")] = 0.2,
    momentum: Annotated[float, typer.Option(min=0, max=0.9999, help="Nesterov momentum.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(min=0, help="Weight decay.")] = 5e-4,
    crop: Annotated[int, typer.Option(min=0, max=64, help="Pixels that images shift.")] = 4,
    flip: Annotated[bool, typer.Option(help="Mirror half of the images.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Train again what is there.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train a network centrally; the setting initial_weights starts studies from it.

    A JSON card with settings and test accuracy lies beside the weights. Given again, the command
    continues after the last epoch that ended.
    """
    if out.suffix != ".safetensors":
        raise SettingsError("out", str(out), "a name that ends in .safetensors")
    given = {
        "plugin": plugin,
        "model": model,
        "dataset": dataset,
        "data_dir": data_dir,
        "seeds": seed,
        "normalize_mean": normalize_mean,
        "normalize_std": normalize_std,
    }
    settings = load_settings(None, {name: value for name, value in given.items() if value})
    if len(settings.seeds) > 1:
        raise SettingsError("seed", seed, "one number")
    from fl_sim.data import load_splits  # noqa: PLC0415 - torch, not for --help
    from fl_sim.storage.progress import progress_bar  # noqa: PLC0415
    from server.pretraining import Pretraining, Recipe  # noqa: PLC0415

    recipe = Recipe(epochs, batch_size, learning_rate, momentum, weight_decay, crop, flip)
    splits = load_splits(settings.data, settings.seeds[0])
    training = Pretraining(settings, splits, recipe, out)
    if force:
        training.delete()
    rich.reconfigure(stderr=True, quiet=quiet)
    card = training.card()
    if card is None:
        with progress_bar("Pretraining", epochs * training.steps) as advance:
            card = training.run(advance)
    print(
        f"{out}: test accuracy {card['test_accuracy']:.1%} on {card['test_images']:,} images, "
        f"{card['parameters']:,} parameters, {card['seconds']:,.0f} s, digest {card['digest']}"
    )


@command("quantizers --json")
def quantizers(as_json: Json = False) -> None:
    """List the quantizers: spec, size, unbiased or not, error, source."""
    from fl_sim.quantizers.catalogue import catalogue  # noqa: PLC0415

    if as_json:
        _print_json([asdict(entry) for entry in catalogue()])
        return
    table = Table(box=SIMPLE_HEAD)
    table.add_column("spec", overflow="fold")
    for column in ("bits for d elements", "unbiased", "error", "source"):
        table.add_column(column, overflow="fold")
    for entry in catalogue():
        unbiased = "yes" if entry.unbiased else "no"
        cells = (entry.example, entry.bits, unbiased, entry.error, entry.source)
        table.add_row(*map(Text, cells))
    Console().print(table)


@command("epsilon clip:norm=1+gaussian:sigma=4 --parameters 8026 --rounds 200")
def epsilon(
    specs: Annotated[str, typer.Argument(metavar="QUANTIZERS", help="By spec.")],
    parameters: Annotated[int, typer.Option(min=1, help="Elements of an update.")] = 8026,
    rounds: Annotated[str, typer.Option(help="Payloads of a client.", metavar="INTEGER")] = "1",
    delta: Annotated[str, typer.Option(help="Delta.", metavar="NUMBER")] = "1e-5",
    gallery: Annotated[int, typer.Option(min=1, help="Public images.")] = 1000,
    as_json: Json = False,
) -> None:
    """Print what quantizers guarantee against any attacker: epsilon, and a bound."""
    settings = load_settings(None, {"quantizers": specs, "rounds": rounds, "delta": delta})
    from fl_sim.quantizers import parse_quantizer  # noqa: PLC0415

    facts = []
    for spec in settings.quantizers:
        guarantee = parse_quantizer(spec).guarantee(parameters)
        if guarantee is None:
            raise SettingsError("quantizers", spec, _NO_GUARANTEE)
        count, least = settings.training.rounds, settings.audit.delta
        most = guarantee.identified(count, 1 / (gallery + 1))
        found = guarantee.epsilon(count, least)
        facts.append(
            {"quantizer": spec, "epsilon": found, "delta": least, "identified_bound": most}
        )
    if as_json:
        _print_json(facts)
        return
    for one in facts:
        print(
            f"{one['quantizer']}: epsilon {one['epsilon']:.4g} at delta {one['delta']:g}; "
            f"no attacker identifies more than {one['identified_bound']:.2%}"
        )


_NO_GUARANTEE = (
    "guarantees nothing; only clipping before noise does, "
    "e.g. clip:norm=1+gaussian:sigma=4 or noisy_sign:clip=1,noise=4"
)


@command("attacks --json")
def attacks(
    plugin: Annotated[
        str, typer.Option(help="Modules or files of attacks of your own.", metavar="NAME,...")
    ] = "",
    as_json: Json = False,
) -> None:
    """List the attacks: what each does, and every value it uses; edit one as in cell:tv=1e-4."""
    from attacker.presets import catalogue  # noqa: PLC0415

    if plugin:
        load_settings(None, {"plugin": plugin})
    if as_json:
        _print_json(catalogue())
        return
    for entry in catalogue():
        print(f"{entry['name']}: {entry['summary']}")
        values = ",".join(f"{key}={value}" for key, value in entry["values"].items())
        spec = f"{entry['name']}:{values}" if values else entry["name"]
        print("   ", ", ".join(entry["members"]) if "members" in entry else spec)


def _print_json(facts: object) -> None:
    print(json.dumps(facts, indent=2))


@contextmanager
def _writing(study: "Study", root: Path, quiet: bool, verbose: bool) -> Iterator[None]:
    """Write below ``root`` alone, with a log; sum up at the end what it holds beside errors."""
    rich.reconfigure(stderr=True, quiet=quiet)
    with (
        study.locked(root),
        log_file(root / LOG, quiet=quiet, verbose=verbose) as counted,
    ):
        yield
    if counted and not quiet:
        summary = ", ".join(f"{count} {event}" for event, count in counted.most_common())
        print(f"{root / LOG}: {summary}", file=sys.stderr)


def _check_tool(tool: str) -> None:
    if not tool:
        return
    from results.loggers import LOGGERS  # noqa: PLC0415

    if tool not in LOGGERS:
        raise SettingsError("log_to", tool, one_of(tool, LOGGERS))
    if find_spec(tool) is None:
        raise SettingsError("log_to", tool, f'is not installed; pip install ".[{tool}]"')


def _check_metrics(study: "Study") -> None:
    """Refuse, before anything is done, a metric that no score can come from."""
    metrics = study.points[0].settings.audit.metrics
    if metrics:
        from fl_sim.metrics import further_metrics  # noqa: PLC0415

        further_metrics(metrics)


def _log(study: "Study", root: Path, tool: str) -> None:
    if not tool:
        return
    from results.loggers import log_run  # noqa: PLC0415

    for folder in study.folders(root):
        print(log_run(folder.root, tool))


def _start_fork_server(study: "Study") -> None:
    """Start the fork server, which imports what workers need while this process does the same."""
    from fl_sim.engines.fork_server import fork_server  # noqa: PLC0415

    engine = study.points[0].settings.engine
    if engine.engine == "local" and engine.workers != 1:
        fork_server(["server.study"])


def _work(study: "Study", root: Path, *, training: bool) -> None:
    """Do what is left of a study, and report."""
    import results.run_report  # noqa: F401, PLC0415 - while the fork server imports the rest
    from fl_sim.study.provenance import Session  # noqa: PLC0415
    from server import study as server  # noqa: PLC0415

    session = Session(study.create(root))
    if training:
        with session.phase("training"):
            server.train(study, root)
    with session.phase("attacking"):
        server.attack(study, root)
    _report(root)


def _report(root: Path) -> None:
    from results.run_report import summarise  # noqa: PLC0415
    from results.tables.families import print_families  # noqa: PLC0415
    from results.tables.terminal import print_results  # noqa: PLC0415

    print_results(summarise(root), Console())
    print_families(root / "families.csv", Console())


def _require_trained(study: "Study", root: Path, otherwise: str) -> None:
    """Raise `UnfinishedError` where the training of a trial is missing or does not stand."""
    from server.study import unfinished_trainings  # noqa: PLC0415

    total = sum(len(point.settings.combinations) for point in study.points)
    pairs = zip(study.points, study.folders(root), strict=True)
    left = sum(len(unfinished_trainings(point.settings, folder)) for point, folder in pairs)
    if left:
        raise UnfinishedError(f"{left} of {total} trials {otherwise}")


class UnfinishedError(RuntimeError):
    """A study of which not everything could be done."""


def main() -> None:
    """Run the command line; a failure is one line on standard error.

    The exit status is 2 for bad input, 1 for what failed on the way, 130 when interrupted and 143
    when terminated.
    """
    keep_freed_memory()
    try:
        with interruptible():
            status = cli(standalone_mode=False)
        _flush()
        if status:
            sys.exit(status)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        _refuse(error.format_message())
    except SettingsError as error:
        _refuse(str(error))
    except StoreError as error:
        _fail(f"{error}; to train its trial again, delete it")
    except UnfinishedError as error:
        _fail(str(error))
    except PartError as error:
        _fail(f"{error}; {KEPT}")
    except (OSError, WorkerLostError) as error:
        _fail(f"{error}; {KEPT}")
    except click.exceptions.Abort:
        _fail("no answer was given, nothing was done")
    except Interrupted as request:
        request.announce()
        sys.exit(request.status)


def _flush() -> None:
    """Write what is buffered; end without a word where nobody reads it, as in ``| head``."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(line: str) -> None:
    print("error:", " ".join(line.split()), file=sys.stderr)
    sys.exit(1)


def _refuse(line: str) -> None:
    print("error:", " ".join(line.split()), file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
