"""What an experiment is made of: parts that are measured on their own, and what is made of their results.

settings -> `Experiment.parts` -> result.json of each part -> `Experiment.summary` -> table, picture, results.json
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from gatito import __version__
from gatito.errors import UserError
from gatito.eval.results import Results, read_results

RESULT = "result.json"
"""File that a finished part has written."""
PLACES = ("datasets", "demonstrations_from", "init")
"""Settings that name files: what they hold counts (`Experiment.made_of`), not how they are called."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all experiments share."""

    seeds: list[int] = field(default_factory=lambda: [0, 1])
    """Of weights and data order; each is trained anew."""
    episodes: int = 50
    """Seeded episodes per task of every evaluation."""
    threads: int = 1
    """Threads that each part computes with on a CPU; they may be others when it is continued."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise UserError(f"--seeds is {self.seeds}, allowed different whole numbers from 0, at least one")
        for name, fewest in (("episodes", 2), ("threads", 1)):  # one episode has no interval
            if getattr(self, name) < fewest:
                raise UserError(f"--{name} is {getattr(self, name)}, allowed {fewest} and more")


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is measured on its own, in a process of its own."""

    name: str
    """Of its folder."""
    facts: Mapping[str, Any]
    """What tells it from the others: method, size, seed and the like."""
    measure: Callable[[Path], Mapping[str, Any]]
    """Measures into a folder and returns JSON values; called again after an interruption, it continues."""
    needs: tuple[str, ...] = ()
    """Names of parts that must be measured before."""


def named(*words: Any) -> str:
    """The name of a part, file or folder that is told by words such as a way, a task and a seed."""
    return "-".join(map(str, words)).replace("/", "--").replace(" ", "-")


def folder_of(part: str, out: Path) -> Path:
    """Where a part is measured."""
    return out / "parts" / part


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A part that is finished."""

    folder: Path
    """Its own."""
    facts: Mapping[str, Any]
    """Those of the part."""
    values: Mapping[str, Any]
    """What `measure` returned."""

    @classmethod
    def of(cls, name: str, out: Path, facts: Mapping[str, Any] | None = None) -> "Measured":
        """The finished part of a name; raises `UserError` for a result that cannot be read."""
        folder = folder_of(name, out)
        try:
            values = json.loads((folder / RESULT).read_text())
            float(values["seconds"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder / RESULT}: {error}; remove it, and the part is measured again") from None
        return cls(folder=folder, facts=facts or {}, values=values)

    def value(self, key: str) -> Any:
        """One of the values; raises `UserError` where the result was changed since, and lacks it."""
        if key not in self.values:
            raise UserError(f"{self.folder / RESULT} lacks {key!r}; remove it, and the part is measured again")
        return self.values[key]

    def results(self, name: str = "eval") -> Results:
        """The episodes of one of its evaluations; raises `UserError` where they cannot be read."""
        return self._results[name] if name in self._results else self._read(name)

    @cached_property
    def _results(self) -> dict[str, Results]:
        return {}

    def _read(self, name: str) -> Results:
        try:
            self._results[name] = read_results(self.folder / f"{name}.json")
        except UserError as error:
            raise UserError(f"{error}; or remove it and {self.folder / RESULT}, and it is played again") from None
        return self._results[name]

    @property
    def run(self) -> Path:
        """Folder of its training run."""
        return self.folder / "run"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows for people."""

    title: str
    """What it shows."""
    head: Sequence[str]
    """Names of the columns."""
    rows: Sequence[Sequence[str]]
    """Cells, in words."""

    def markdown(self) -> str:
        """As Markdown."""
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return f"**{self.title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What came of an experiment."""

    tables: Sequence[Table]
    """For people."""
    findings: Sequence[str]
    """A sentence for each question that was asked, with its interval, failures too."""
    values: Mapping[str, Any]
    """The numbers of tables and picture, as JSON."""
    draw: Callable[[Path], None]
    """Draws the picture, a PNG; what it needs is imported then."""


class Experiment(ABC):
    """One experiment with its settings."""

    name: str
    """As it is typed."""
    question: str
    """What it asks, in a sentence."""
    settings: Settings
    """How it is carried out."""
    without_effect: Sequence[str] = ("threads", *PLACES)
    """Settings that decide how fast and where something is done, not what comes of it."""
    is_timed = False
    """Whether parts have minutes, in which they do more where fewer are measured at a time."""

    @abstractmethod
    def check(self) -> None:
        """Raise `UserError` for settings that cannot be carried out, before anything is written."""

    def made_of(self) -> dict[str, Any]:
        """What decides what is measured beside the settings, as JSON: what the files that they name hold."""
        return {}

    @abstractmethod
    def prepare(self, out: Path) -> None:
        """Collect and build what the parts are trained on; what is there already is kept."""

    @abstractmethod
    def parts(self, out: Path) -> list[Part]:
        """All parts, in the order of the results."""

    @abstractmethod
    def summary(self, measured: Sequence[Measured]) -> Summary:
        """What is made of the finished parts."""


def settings_json(experiment: Experiment) -> dict[str, Any]:
    """The settings of an experiment, as JSON values."""
    values = {"experiment": experiment.name, **asdict(experiment.settings)}
    return dict(json.loads(json.dumps(values)))  # tuples as they will be read


def identity_json(experiment: Experiment, parallel: int) -> dict[str, Any]:
    """What decides what is measured: parts that were measured with another one are not continued."""
    free = experiment.without_effect
    settings = {name: value for name, value in settings_json(experiment).items() if name not in free}
    timed = {"parallel": parallel} if experiment.is_timed else {}
    return dict(json.loads(json.dumps({**settings, **timed, "gatito": __version__, **experiment.made_of()})))
