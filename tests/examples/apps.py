"""Run an example app in this process, as ``flwr run`` would."""

import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict

from fl_sim.engines.grids import LocalGrid

EXAMPLES = Path(__file__).parents[2] / "examples"


class ExampleApp:
    """An app of ``examples/``, whose folder must be on the path.

    Attributes
    ----------
    folder : Path
        Of the app.
    config : dict
        Its run config.
    """

    def __init__(self, name: str) -> None:
        self.folder = EXAMPLES / name
        text = (self.folder / "pyproject.toml").read_text()
        app = tomllib.loads(text)["tool"]["flwr"]["app"]
        self.config: dict[str, Any] = app["config"]
        self._components: dict[str, str] = app["components"]

    def component(self, name: str) -> Any:
        """Return ``serverapp`` or ``clientapp``."""
        module, attribute = self._components[name].split(":")
        return getattr(import_module(module), attribute)

    def run(self, out: Path, clients: int, **config: Any) -> None:
        """Run the app with so many clients."""
        config = self.config | {"out": str(out)} | config
        context = Context(1, 1, {}, RecordDict(), config)
        grid = LocalGrid(self.component("clientapp"), clients, config)
        self.component("serverapp")(grid, context)
