"""What `gatito experiment` does."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from gatito.errors import UserError
from gatito.experiment.catalogue import EXPERIMENTS
from gatito.experiment.engine import command_of, measure_part, run_experiment


def run_named(name: str, typed: Mapping[str, Any], arguments: Sequence[str]) -> None:
    """Carry out the experiment of a command line, or the one part of it that is asked for.

    Raises `UserError` where matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:  # the picture comes last: what it needs is asked for first
        raise UserError("gatito experiment draws with matplotlib: pip install 'gatito[experiment]'")
    entry = EXPERIMENTS[name]
    settings = entry.settings(**{f.name: typed[f.name] for f in fields(entry.settings)})
    experiment, out = entry.experiment(settings), Path(typed["out"])
    if typed["part"] is not None:
        measure_part(experiment, out, typed["part"], typed["parallel"])
        return
    run_experiment(experiment, out, command_of(arguments), typed["parallel"])
