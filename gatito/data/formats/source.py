"""A dataset in another format: its fields, what each is taken for, and its episodes as Minari keeps them."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from numpy.typing import NDArray

from gatito.data.episode import check_values, stack
from gatito.data.minari_episodes import EXPLORATORY
from gatito.errors import UserError, nearest
from gatito.tokenizers.vocabulary import NUM_DISCRETE

Values = NDArray[Any] | list[str]
"""A field of an episode: (T, ...) numbers, or T texts."""
Space = spaces.Space[Any]

FRAMES = 4
"""Channels of a picture that are taken for so many grey frames."""
FRAME_KEYS = tuple(f"frame_{k}" for k in range(FRAMES))
"""What these are called in a Dict."""
REWARD, TERMINATED, TRUNCATED = "reward", "terminated", "truncated"
KEPT = (
    "algorithm_name", "author", "description", "gatito_actions", "gatito_license", "ref_max_score", "ref_min_score",
)  # fmt: skip
"""What is kept of a Minari dataset's metadata."""
TASK_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*")
"""What can be a folder, and names no module."""
ROLES = ("observation", "action", REWARD, TERMINATED, TRUNCATED)
"""What a field can be taken for; `observation.NAME`, of which there may be several, makes a Dict of them."""


@dataclass(frozen=True, kw_only=True)
class SourceField:
    """One field of a dataset, as its files call it."""

    name: str
    """Such as `observations`, `obs/object` or `image_observations`."""
    dtype: str
    """Of its values: a numpy dtype, or `text`."""
    shape: tuple[int, ...]
    """Of one timestep."""
    role: str = ""
    """What it is taken for, one of `ROLES` or `observation.NAME`; empty where it is left out."""


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """What `gatito data import` imports."""

    source: str
    """`minari:FOLDER_OR_ID`, `hf:OWNER/NAME[/CONFIG]`, `hf:FOLDER[/CONFIG]`, `lerobot:FOLDER` or
    `hdf5:FILE`."""
    task: str
    """Task id that the episodes are of."""
    mapping: Mapping[str, str] = field(default_factory=dict)
    """Role to the name of the field that is taken for it, where the format alone does not say."""
    split: str = "train"
    """Of `hf:` sources."""
    agent: str | None = None
    """Who acted; null is what the source says."""
    max_episode_steps: int | None = None
    """Where a file does not say which episodes were cut, the length at which they were."""

    def __post_init__(self) -> None:
        if self.max_episode_steps is not None and self.max_episode_steps < 1:
            raise UserError(f"--max-episode-steps is {self.max_episode_steps}, allowed 1 and more")
        if not TASK_ID.fullmatch(self.task):  # of a dataset that is exported it comes from a file
            raise UserError(f"task {self.task!r}: allowed is domain/name, each of letters, digits, '-', '_' and '.'")

    @property
    def scheme(self) -> str:
        """The part of the source before the colon."""
        return self.source.partition(":")[0]

    @property
    def location(self) -> str:
        """The part after the colon."""
        return self.source.partition(":")[2]


@dataclass(frozen=True, kw_only=True)
class RawEpisode:
    """T timesteps as a file has them."""

    where: str
    """File and episode, for errors."""
    values: Mapping[str, Values]
    """Field name to its values; those of observations may be T + 1."""
    terminated: bool = False
    """Whether it ended by itself, where no field says; else it was cut."""
    agent: str | None = None
    """Who acted, where the file says so of an episode."""
    seed: int | None = None
    """Of the environment's reset, where the file says so."""
    exploratory: NDArray[np.bool_] | None = None
    """(T,) where a random action was executed and recorded, where the file says so."""


class EpisodeSource(ABC):
    """An opened dataset. Nothing in it chooses code to run, and it is never written to."""

    def __init__(
        self,
        config: ImportConfig,
        found: Sequence[SourceField],
        guessed: Mapping[str, str],
        given: tuple[Space, Space] | None,
    ) -> None:
        """Take fields for what the mapping says, or else the format; `given` are the spaces of the environment.

        Raises `UserError`, with a table of the fields, where it is not known what the agent observed or did.
        """
        self.config = config
        self.fields = _with_roles(config, found, guessed)
        self._roles = {f.role: f for f in self.fields if f.role}
        if given is not None:
            self.observation_space, self.action_space = given
        else:
            self.observation_space, self.action_space = self.stated_spaces() or self._inferred_spaces()

    metadata: Mapping[str, Any] = {}
    """Of the dataset: `algorithm_name`, `gatito_license`, `description`, `ref_min_score`, `ref_max_score`."""

    @property
    def observed(self) -> dict[str, SourceField]:
        """The fields of observations by the name behind `observation.`; a field that is all of it has none."""
        return {role.partition(".")[2]: f for role, f in self._roles.items() if is_observed(role)}

    @property
    @abstractmethod
    def num_episodes(self) -> int:
        """How many there are."""

    @abstractmethod
    def raw_episodes(self, first: int, last: int) -> Iterator[RawEpisode]:
        """Yield the episodes [first, last), in order, with the fields that have a role."""

    @abstractmethod
    def column(self, name: str) -> Iterator[Values]:
        """Yield the values of one field, a stretch at a time."""

    def stated_spaces(self) -> tuple[Space, Space] | None:
        """The spaces, where the files state them."""
        return None

    def episodes(self, first: int = 0, last: int | None = None) -> Iterator[tuple[EpisodeBuffer, dict[str, Any]]]:
        """Yield the episodes [first, last), T + 1 observations and T actions, with what is said of each beside.

        Raises `UserError`, naming file, episode, timestep and field, for what cannot be an episode.
        """
        last = self.num_episodes if last is None else min(last, self.num_episodes)
        for raw in self.raw_episodes(first, last):
            agent = self.config.agent or raw.agent
            yield self._buffer(raw), {"agent": agent} if agent else {}

    def _buffer(self, raw: RawEpisode) -> EpisodeBuffer:
        actions = self._value(raw, "action")
        T = len(actions)
        if T == 0:
            raise UserError(f"{raw.where}: it has no timesteps; drop it")
        rewards = self._rewards(raw, T)
        terminated, truncated = self._ends(raw, T)
        advice = "repair the file, or import it without --env"
        seen = stack(self.observation_space, self._observations(raw, T), f"{raw.where}, observation")
        check_values(self.observation_space, seen, f"{raw.where}, observation", advice)
        done = stack(self.action_space, list(actions), f"{raw.where}, action")
        check_values(self.action_space, done, f"{raw.where}, action", advice)
        explored = None if raw.exploratory is None else np.append(raw.exploratory, False)[:, None]
        return EpisodeBuffer(
            seed=raw.seed,
            infos={} if explored is None else {EXPLORATORY: explored},
            observations=seen,
            actions=done,
            rewards=rewards.tolist(),
            terminations=[False] * (T - 1) + [terminated],
            truncations=[False] * (T - 1) + [truncated],
        )

    def _rewards(self, raw: RawEpisode, T: int) -> NDArray[np.float64]:
        """Those of the file, else none."""
        if REWARD not in self._roles:
            return np.zeros(T)
        rewards = np.asarray(self._value(raw, REWARD), np.float64).reshape(-1)
        self._check_length(raw, REWARD, len(rewards), T)
        if not np.isfinite(rewards).all():
            t = int(np.argmin(np.isfinite(rewards)))
            raise UserError(f"{raw.where}, timestep {t}: the reward is {rewards[t]}; repair or drop the episode")
        return rewards

    def _observations(self, raw: RawEpisode, T: int) -> list[Any]:
        """T + 1 observations; where the last one is not stored, the one before it stands for it."""
        columns: dict[str, list[Any]] = {}
        for name, found in self.observed.items():
            values = list(raw.values[found.name])
            if len(values) != T + 1:
                self._check_length(raw, found.role, len(values), T)
                values = [*values, values[-1]]
            columns[name] = values
        seen = self.observation_space
        for name, values in columns.items():
            space = seen if name == "" or not isinstance(seen, spaces.Dict) else seen.spaces.get(name)
            if isinstance(space, spaces.Dict) and isinstance(values[0], np.ndarray):
                columns[name] = [dict(zip(FRAME_KEYS, np.split(v, FRAMES, axis=-1), strict=True)) for v in values]
        if "" in columns:
            return columns[""]
        return [{name: values[t] for name, values in columns.items()} for t in range(T + 1)]

    def _ends(self, raw: RawEpisode, T: int) -> tuple[bool, bool]:
        """Whether the episode terminated, and whether it was cut: one of both at least."""
        said = {}
        for role in (TERMINATED, TRUNCATED):
            if role in self._roles:
                flags = flags_of(self._value(raw, role), f"{raw.where}, {self._roles[role].name}")
                self._check_length(raw, role, len(flags), T)
                said[role] = bool(flags[-1])
        terminated = said.get(TERMINATED, raw.terminated)
        return terminated, said.get(TRUNCATED, False) or not terminated

    def _value(self, raw: RawEpisode, role: str) -> Values:
        return raw.values[self._roles[role].name]

    def _check_length(self, raw: RawEpisode, role: str, length: int, T: int) -> None:
        if length != T:
            name = self._roles[role].name
            raise UserError(f"{raw.where}: {name} has {length} rows, expected {T} as of actions; repair the file")

    def _inferred_spaces(self) -> tuple[Space, Space]:
        """From what the values are: numbers unbounded, whole numbers as far as they go, uint8 HxWxC images."""
        seen = {name: self.space_of(f) for name, f in self.observed.items()}
        return seen[""] if "" in seen else spaces.Dict(seen), self.space_of(self._roles["action"])

    def space_of(self, found: SourceField) -> Space:
        """The space of a field, from what its values are."""
        if found.dtype == "text":
            return self._text_space(found)
        dtype = np.dtype(found.dtype)
        if dtype.kind == "f":
            return spaces.Box(-np.inf, np.inf, found.shape, dtype.type)
        if dtype == np.uint8 and len(found.shape) == 3:
            one = spaces.Box(0, 255, (*found.shape[:2], 1), np.uint8)
            # Frames of Atari games are kept four at a time; read as one image the last would be its transparency.
            stacked: dict[str, Space] = dict.fromkeys(FRAME_KEYS, one)
            return spaces.Dict(stacked) if found.shape[2] == FRAMES else spaces.Box(0, 255, found.shape, np.uint8)
        low, high = self.limits(found)
        smallest, largest = min(int(low.min()), 0), int(high.max())  # their difference may exceed the dtype
        if largest - smallest >= NUM_DISCRETE:
            return spaces.Box(low, high, found.shape, dtype.type)
        if not found.shape:
            return spaces.Discrete(int(high - min(low, 0)) + 1, start=min(int(low), 0))
        start = np.minimum(low, 0).astype(np.int64)
        return spaces.MultiDiscrete(high.astype(np.int64) - start + 1, start=start)

    def limits(self, found: SourceField) -> tuple[NDArray[Any], NDArray[Any]]:
        """The smallest and the largest value of each element, over all episodes."""
        limits = [(v.min(axis=0), v.max(axis=0)) for v in map(np.asarray, self.column(found.name)) if len(v)]
        if not limits:
            raise UserError(f"{self.config.source}: field {found.name} has no values; leave it out")
        return np.min([a for a, _ in limits], axis=0), np.max([b for _, b in limits], axis=0)

    def _text_space(self, found: SourceField) -> spaces.Text:
        longest, characters = 1, set(" ")
        for texts in self.column(found.name):
            for text in set(texts):
                longest, characters = max(longest, len(text)), characters | set(text)
        return spaces.Text(longest, min_length=0, charset="".join(sorted(characters)))


def flags_of(values: Any, where: str) -> NDArray[np.bool_]:
    """Flags (T,) of truth values or numbers; raises `UserError` for NaN."""
    found = np.asarray(values).reshape(-1)
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        t = int(np.argmin(np.isfinite(found)))
        raise UserError(f"{where}, row {t}: {found[t]}, expected 0 or 1; repair the file")
    return found.astype(np.bool_)


def kept_metadata(stated: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What is kept of a Minari dataset's metadata, as JSON has it: Minari gives several authors as a set.

    Raises `UserError` for values of another kind.
    """
    found = {key: stated[key] for key in KEPT if stated.get(key) is not None}
    for key, value in found.items():
        if isinstance(value, set | frozenset):
            found[key] = value = sorted(value)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_list = key == "author" and isinstance(value, list) and all(isinstance(name, str) for name in value)
        wanted = "a number" if key.startswith("ref_") else "a text"
        if not (is_number if wanted == "a number" else isinstance(value, str) or is_list):
            raise UserError(f"{where}: its metadata has {key} {value!r:.60}, expected {wanted}; mend it")
    return found


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Turn what a damaged file makes libraries raise into a `UserError` that names the source."""
    try:
        yield
    except UserError:
        raise
    except (pa.ArrowException, *_OF_DAMAGED) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"{source}: its files contradict themselves ({type(error).__name__}: {reason}); repair or drop it"
        ) from None


_OF_DAMAGED = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError, OSError, MemoryError,
)  # fmt: skip


def is_observed(role: str) -> bool:
    """Whether a role is that of an observation, or of one of its parts."""
    whole, dot, part = role.partition(".")
    return whole == "observation" and bool(part) == bool(dot)


def timesteps_of(tree: Any) -> list[Any]:
    """A nested value with a leading time axis as one nested value for each timestep."""
    if isinstance(tree, dict):
        parts = {key: timesteps_of(value) for key, value in tree.items()}
        return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]
    if isinstance(tree, tuple):
        return list(zip(*map(timesteps_of, tree), strict=True))
    return list(tree)


def _with_roles(
    config: ImportConfig, found: Sequence[SourceField], guessed: Mapping[str, str]
) -> tuple[SourceField, ...]:
    names = [f.name for f in found]
    # A mapping of observations replaces all that the format takes for observations.
    mapped = any(map(is_observed, config.mapping))
    kept = {role: name for role, name in guessed.items() if not (mapped and is_observed(role))}
    roles = kept | dict(config.mapping)
    for role, name in roles.items():
        if role not in ROLES and not is_observed(role):
            raise UserError(f"--map {role}={name}: {nearest(role, ROLES, 'role')}")
        if name not in names:
            raise UserError(f"{config.source}: {nearest(name, names, 'field')}\n{_table(found)}")
    has_observation = any(map(is_observed, roles))
    if not has_observation or "action" not in roles:
        missing = "observation" if not has_observation else "action"
        raise UserError(
            f"{config.source}: it is not known which field is the {missing}; say so: --map {missing}=FIELD. Fields:\n"
            f"{_table(found)}"
        )
    if "observation" in roles and sum(map(is_observed, roles)) > 1:
        raise UserError("--map has observation and observation.NAME; name each of them, or take one alone")
    by_name: dict[str, str] = {}
    for role, name in roles.items():
        if name in by_name:
            raise UserError(f"field {name} is taken for {by_name[name]} and for {role}; map one of them")
        by_name[name] = role
    return tuple(replace(f, role=by_name.get(f.name, "")) for f in found)


def _table(found: Sequence[SourceField]) -> str:
    width = max((len(f.name) for f in found), default=5)
    rows = [f"  {f.name:{width}}  {f.dtype:8}  {' x '.join(map(str, f.shape)) or 'a number'}" for f in found]
    return "\n".join(rows) or "  none"


def parse_mapping(typed: str) -> dict[str, str]:
    """Read `role=field` pairs, separated by commas.

    Raises `UserError` for one that is none, and for a role that is given twice.
    """
    mapping: dict[str, str] = {}
    for pair in typed.split(","):
        role, separator, name = pair.partition("=")
        if not (separator and role and name):
            raise UserError(f"--map {pair!r}: expected ROLE=FIELD, such as observation=obs/state")
        if role in mapping:
            raise UserError(f"--map gives {role} twice: {mapping[role]!r} and {name!r}")
        mapping[role] = name
    return mapping
