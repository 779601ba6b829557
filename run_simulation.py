"""The command line: train, attack and report a study; thin, the work is done by the packages."""

import inspect
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.console import Console
from rich.box import SIMPLE_HEAD
from rich.logging import RichHandler
from rich.table import Table

from fl_sim.runs import RunFolder
from fl_sim.settings import SettingsError, load_settings, option_fields

cli = typer.Typer(
    add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, help=__doc__
)
errors = Console(stderr=True)

DEFAULT_STUDY = Path(__file__).parent / "studies" / "default.toml"

RunArgument = Annotated[Path, typer.Argument(help="Folder of a run, e.g. runs/default.")]


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
    *,
    overrides: dict[str, str],
) -> None:
    """Train every trial of a study, attack what the server observed, and report."""
    if context.invoked_subcommand is not None:
        return
    study = study or DEFAULT_STUDY
    settings = load_settings(study, overrides)
    folder = RunFolder(out or Path("runs") / study.stem)
    from server import study as server  # noqa: PLC0415 - torch and Flower, not for --help

    server.check_study(settings)
    folder.create(settings)
    server.train(settings, folder)
    server.attack(settings, folder)
    _report(folder)


@cli.command()
def attack(
    run: RunArgument,
    attacks: Annotated[str, typer.Option(help="Attacks to add, by preset name.")] = "",
    workers: Annotated[str, typer.Option(help="Processes side by side; 0: one per core.")] = "0",
) -> None:
    """Attack again what a run observed, with further attacks."""
    from server import study as server  # noqa: PLC0415

    folder = RunFolder(run)
    settings = folder.settings()
    overrides = {"workers": workers} | ({"attacks": attacks} if attacks else {})
    asked = load_settings(folder.settings_file, overrides)
    every = tuple(dict.fromkeys((*settings.audit.attacks, *asked.audit.attacks)))
    audit = asked.audit.model_copy(update={"attacks": every})
    settings = asked.model_copy(update={"audit": audit})
    server.check_study(settings)
    folder.create(settings)
    server.attack(settings, folder)
    _report(folder)


@cli.command()
def report(run: RunArgument) -> None:
    """Make tables, curves and pictures of a run again."""
    folder = RunFolder(run)
    folder.settings()
    _report(folder)


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


def _report(folder: RunFolder) -> None:
    from results.run_report import summarise  # noqa: PLC0415
    from results.tables import print_results  # noqa: PLC0415

    print_results(summarise(folder.root), Console())


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
