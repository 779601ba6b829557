"""The command line, as ``--help`` shows it."""

from collections.abc import Iterator

import click
import typer

from docs.render.sections import Section
from run_simulation import cli

PROGRAM = "run_simulation.py"
WIDTH = 88


def sections() -> Iterator[Section]:
    """Yield the help of the program and of each command."""
    yield Section("docs/reference/command-line.md", "commands", help_pages())


def help_pages() -> str:
    """Return the help of the program and of every command, as Markdown."""
    group = typer.main.get_command(cli)
    assert isinstance(group, click.Group)
    with click.Context(group, info_name=PROGRAM) as parent:
        commands = {name: group.get_command(parent, name) for name in group.list_commands(parent)}
        pages = [_page(f"{PROGRAM}", group, None)]
        pages += [_page(name, one, parent) for name, one in commands.items() if one]
    return "\n\n".join(pages)


def _page(name: str, command: click.Command, parent: click.Context | None) -> str:
    context = click.Context(command, parent, name, terminal_width=WIDTH, max_content_width=WIDTH)
    return f"## `{name}`\n\n```text\n{command.get_help(context).rstrip()}\n```"
