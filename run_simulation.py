"""The command line: train, attack and report a study; thin, the work is done by the packages."""

import inspect
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from fl_sim.runs import RunFolder
from fl_sim.settings import SettingsError, load_settings, nearest, option_fields, split_list
from fl_sim.study import load_study, read_study

cli = typer.Typer(
    add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, help=__doc__
)
errors = Console(stderr=True)

DEFAULT_STUDY = Path(__file__).parent / "studies" / "default.toml"
DEFAULT_SWEEP = ("tv=1e-4,1e-3,1e-2,1e-1",)

RunArgument = Annotated[Path, typer.Argument(help="Folder of a run or study, e.g. runs/default.")]


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
                    f"--{name.replace('_', '-')}", help=field.description, metavar="VALUE"
                ),
            ],
        )
        for name, (_, field) in options.items()
    ]
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    run.__signature__ = inspect.Signature(keyword + flags)  # type: ignore[attr-defined]
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run


@cli.callback(invoke_without_command=True)
@with_settings
def run(
    context: typer.Context,
    study: Annotated[Path | None, typer.Option(help="TOML file of a study.")] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; runs/<study> if absent.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="The study's size for seconds.")] = False,
    *,
    overrides: dict[str, str],
) -> None:
    """Train every trial of a study, attack what the server observed, and report."""
    if context.invoked_subcommand is not None:
        return
    path = study or DEFAULT_STUDY
    asked = load_study(path, overrides, smoke=smoke)
    root = out or Path("runs") / (path.stem + ("-smoke" if smoke else ""))
    from server import study as server  # noqa: PLC0415 - torch and Flower, not for --help

    server.check_study(asked)
    asked.create(root)
    server.train(asked, root)
    server.attack(asked, root)
    _report(root)


@cli.command()
def attack(
    run: RunArgument,
    attacks: Annotated[str, typer.Option(help="Attacks to add, by preset name.")] = "",
    tuned: Annotated[str, typer.Option(help="File that `tune` wrote.")] = "",
    workers: Annotated[str, typer.Option(help="Processes side by side; 0: one per core.")] = "0",
) -> None:
    """Attack again what a run observed, with further attacks."""
    from server import study as server  # noqa: PLC0415

    known = read_study(run).points[0].settings.audit.attacks
    added = split_list(attacks) if attacks else ()
    every = tuple(dict.fromkeys((*known, *added)))
    given = {"workers": workers, "attacks": every, "tuned": tuned}
    overrides = {name: value for name, value in given.items() if value}
    study = load_study(RunFolder(run).settings_file, overrides)
    server.check_study(study)
    study.create(run)
    server.attack(study, run)
    _report(run)


@cli.command()
def tune(
    run: RunArgument,
    attacks: Annotated[str, typer.Option(help="Attacks to tune; those of the run if absent.")] = "",
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="Values to try, as in tv=1e-3,1e-2; more of these are combined."),
    ] = None,
    victims: Annotated[str, typer.Option(help="Held-out victims in each observed round.")] = "8",
    workers: Annotated[str, typer.Option(help="Processes side by side; 0: one per core.")] = "0",
) -> None:
    """Tune attacks for each quantizer on public images; RUN/tuned.toml is for --tuned."""
    from results.scoring import score_batch  # noqa: PLC0415
    from server import tuning  # noqa: PLC0415

    folder = RunFolder(run)
    folder.settings()
    given = {"workers": workers, "victims": victims, "attacks": attacks}
    overrides = {name: value for name, value in given.items() if value}
    settings = load_settings(folder.settings_file, overrides)
    tried = tuning.tune(settings, folder, tuning.parse_sweep(sweep or DEFAULT_SWEEP), score_batch)
    print(tried.to_string(index=False, float_format="{:.2f}".format))
    print(f"written to {folder.tuned_file}")


@cli.command()
def report(
    run: RunArgument,
    formats: Annotated[
        str,
        typer.Option("--format", help="Write figures and tables as png,svg,pdf,parquet,md,tex."),
    ] = "",
) -> None:
    """Make tables, curves and pictures of a run again."""
    from results.exports import FORMATS, export  # noqa: PLC0415

    chosen = [name for name in formats.split(",") if name]
    for name in chosen:
        if name not in FORMATS:
            raise SettingsError(
                "format", name, f"one of {', '.join(FORMATS)}{nearest(name, FORMATS)}"
            )
    _report(run)
    export(run, chosen)


@cli.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs and studies.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("runs/comparison.html"),
) -> None:
    """Write one page over several runs."""
    from results.report import compare as compare_runs  # noqa: PLC0415

    compare_runs(runs, out)
    print(out)


@cli.command()
def quantizers() -> None:
    """List the quantizers: spec, size, unbiased or not, error, source."""
    from fl_sim.quantizers.catalogue import catalogue  # noqa: PLC0415

    table = Table(box=SIMPLE_HEAD)
    table.add_column("spec", no_wrap=True)
    for column in ("bits for d elements", "unbiased", "error", "source"):
        table.add_column(column)
    for entry in catalogue():
        unbiased = "yes" if entry.unbiased else "no"
        table.add_row(entry.example, entry.bits, unbiased, entry.error, entry.source)
    Console().print(table)


@cli.command()
def attacks() -> None:
    """List the attacks with every value they use; each can be edited, as in cell:tv=1e-4."""
    from attacker.presets import PRESETS, SUITE, settings  # noqa: PLC0415

    for name, preset in PRESETS.items():
        print(f"{name}:" + ",".join(f"{key}={value}" for key, value in settings(preset).items()))
    print("suite: the best by one yardstick of", ", ".join(SUITE))


def _report(root: Path) -> None:
    from results.run_report import summarise  # noqa: PLC0415
    from results.tables import print_results  # noqa: PLC0415

    print_results(summarise(root), Console())


def main() -> None:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=errors)]
    )
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        _refuse(error.format_message())
    except SettingsError as error:
        _refuse(str(error))
    except (KeyboardInterrupt, click.exceptions.Abort):
        errors.print("interrupted; the same command resumes", style="yellow")
        sys.exit(130)


def _refuse(line: str) -> None:
    print("error:", " ".join(line.split()), file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
