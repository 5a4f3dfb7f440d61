"""One pass over a dataset: what is in it, and what is wrong with it."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gatito.data.checks import Clipped, checked_tokens
from gatito.data.episode import Episode, check_values
from gatito.data.minari_episodes import MinariSource, remedy
from gatito.data.tasks import EVALUATION_SEEDS, Reference, references
from gatito.errors import UserError
from gatito.tokenizers import Layout
from gatito.tokenizers.codec import encode
from gatito.tokenizers.fields import Field, value_at
from gatito.tokenizers.sequence import TokenSequence

MAX_FINDINGS = 20
"""Findings of one kind that are kept one by one; the rest are counted."""
SATURATED = 0.9
"""Share of a continuous action's values at its bounds from which a warning is given."""
OUTSIDE = 0.01
"""Share of observed values outside their bounds from which a warning is given."""
LEAST_SCORE = 0.5
"""Mean score of expert episodes below which a warning is given."""
MAX_FRAMES = 16
"""Frames of an episode whose brightness is counted."""
NUM_TEXTS = 1000
"""Distinct texts of a field that are counted."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is wrong with a dataset."""

    level: Literal["error", "warning"]
    """An error does not train; a warning may be meant."""
    kind: str
    """What was looked at, such as `bounds` or `duplicates`."""
    text: str
    """Where, the value, what was expected, and what to do."""


@dataclass(kw_only=True, eq=False)
class FieldSurvey:
    """The values of one field over all timesteps."""

    role: Literal["observation", "action"]
    """Which space it is of."""
    leaf: Field
    """The field."""
    counts: NDArray[np.int64]
    """Continuous: timesteps x elements by bin (1024,); discrete: by value; images: by brightness (256,)."""
    low: NDArray[np.float64] = field(default_factory=lambda: np.array(np.inf))
    """Smallest value of each element (size,), of images of all."""
    high: NDArray[np.float64] = field(default_factory=lambda: np.array(-np.inf))
    """Largest."""
    at_bounds: int = 0
    """Values that lie on a declared bound."""
    num_values: int = 0
    """Timesteps x elements."""
    texts: Counter[str] = field(default_factory=Counter)
    """Text: how many timesteps each has, of the first `NUM_TEXTS`."""

    @property
    def constant(self) -> list[int]:
        """Elements that never change."""
        if self.leaf.kind not in ("continuous", "discrete") or not self.num_values:
            return []
        return [int(i) for i in np.flatnonzero(self.low == self.high)]

    def add(self, values: Any, layout: Layout) -> None:
        """Take the values (T, *shape) of an episode."""
        kind = self.leaf.kind
        if kind == "text":
            for text in values:
                if text in self.texts or len(self.texts) < NUM_TEXTS:
                    self.texts[text] += 1
            self.num_values += len(values)
            return
        flat = np.asarray(values).reshape(len(values), -1)
        self.num_values += flat.size
        axis = None if kind == "image" else 0
        self.low, self.high = np.minimum(self.low, flat.min(axis)), np.maximum(self.high, flat.max(axis))
        if kind == "image":
            frames = flat[:: max(1, len(flat) // MAX_FRAMES)]
            self.counts += np.bincount(frames.reshape(-1), minlength=256)
            return
        ids = encode(self.leaf, values, layout.vocabulary, self.leaf.name)
        first = layout.vocabulary.continuous_start if kind == "continuous" else layout.vocabulary.discrete_start
        self.counts += np.bincount((ids - first).reshape(-1), minlength=len(self.counts))
        if kind == "continuous":
            low, high = self.leaf.bounds
            self.at_bounds += int(np.count_nonzero((flat <= low) | (flat >= high)))


@dataclass(kw_only=True, eq=False)
class Survey:
    """What is in a dataset."""

    source: MinariSource
    """The dataset."""
    layout: Layout
    """Its layout."""
    reference: Reference | None
    """Returns of the random policy and of the expert, where they were measured."""
    fields: list[FieldSurvey]
    """Of observations, then of actions."""
    ids: list[int] = field(default_factory=list)
    """Index in the dataset of each episode that could be read; the lists below are of the same episodes."""
    returns: list[float] = field(default_factory=list)
    """Sum of the rewards of each episode."""
    lengths: list[int] = field(default_factory=list)
    """Timesteps of each episode."""
    agents: list[str] = field(default_factory=list)
    """Source agent of each episode."""
    tokens: int = 0
    """Of all episodes."""
    longest: int = 0
    """Tokens of the longest timestep."""
    clipped: Clipped = field(default_factory=Clipped)
    """Values outside their bounds."""
    findings: list[Finding] = field(default_factory=list)
    """What is wrong, errors first."""

    @property
    def num_errors(self) -> int:
        """Findings that keep the dataset from training."""
        return sum(finding.level == "error" for finding in self.findings)

    def by_agent(self) -> Iterator[tuple[str, NDArray[np.float64]]]:
        """Source agents with the returns of their episodes."""
        for agent in sorted(set(self.agents)):
            yield agent, np.array([r for r, a in zip(self.returns, self.agents, strict=True) if a == agent])


def survey(
    source: MinariSource, layout: Layout, context: int | None = None, tick: Callable[[], object] = lambda: None
) -> Survey:
    """Read every episode of a dataset; what is wrong with one becomes a finding, and the pass goes on.

    `context` is the number of positions that a timestep must fit.
    """
    roles: list[tuple[Literal["observation", "action"], tuple[Field, ...]]] = [
        ("observation", layout.observations),
        ("action", layout.actions),
    ]
    fields = [FieldSurvey(role=role, leaf=f, counts=_no_counts(f)) for role, found in roles for f in found]
    known = references().get(source.task)
    seen = Survey(source=source, layout=layout, reference=known, fields=fields)
    findings = _Findings()
    hashes: dict[bytes, int] = {}
    seeds: dict[tuple[str, int], int] = {}
    for index in range(len(source)):
        where = f"{source.path}, episode {index}"
        try:
            episode = source.episode(index)
            sequence, clipped = checked_tokens(layout, episode, where=where)
        except UserError as error:
            findings.add("error", "values", str(error))
            continue
        try:
            space = source.dataset.observation_space
            check_values(space, episode.observations, f"{where}, observation", "mend it, or widen the space")
        except UserError as error:
            findings.add("warning", "bounds", str(error))
        _take(seen, episode, sequence, clipped)
        _check_identity(findings, episode, sequence, where, hashes, seeds)
        tick()
    _check_whole(findings, seen, context)
    seen.findings = findings.sorted()
    return seen


def _no_counts(f: Field) -> NDArray[np.int64]:
    size = {"continuous": 1024, "discrete": max(f.num_values, default=0), "image": 256}.get(f.kind, 0)
    return np.zeros(size, np.int64)


class _Findings:
    """Findings, at most `MAX_FINDINGS` of a kind one by one."""

    def __init__(self) -> None:
        self.found: list[Finding] = []
        self.counts: Counter[tuple[Literal["error", "warning"], str]] = Counter()

    def add(self, level: Literal["error", "warning"], kind: str, text: str) -> None:
        self.counts[level, kind] += 1
        if self.counts[level, kind] <= MAX_FINDINGS:
            self.found.append(Finding(level=level, kind=kind, text=text))

    def sorted(self) -> list[Finding]:
        more = [
            Finding(level=level, kind=kind, text=f"and {count - MAX_FINDINGS} more of this kind")
            for (level, kind), count in self.counts.items()
            if count > MAX_FINDINGS
        ]
        return sorted([*self.found, *more], key=lambda finding: finding.level)


def _take(seen: Survey, episode: Episode, sequence: TokenSequence, clipped: Clipped) -> None:
    for of_field in seen.fields:
        tree = episode.observations if of_field.role == "observation" else episode.actions
        of_field.add(value_at(tree, of_field.leaf.path), seen.layout)
    seen.ids.append(episode.id)
    seen.returns.append(episode.total_return)
    seen.lengths.append(len(episode))
    seen.agents.append(episode.agent)
    seen.tokens += len(sequence)
    seen.longest = max(seen.longest, int(np.diff(sequence.timestep_starts).max()))
    seen.clipped += clipped


def _check_identity(
    findings: _Findings,
    episode: Episode,
    sequence: TokenSequence,
    where: str,
    hashes: dict[bytes, int],
    seeds: dict[tuple[str, int], int],
) -> None:
    digest = hashlib.sha256(sequence.ids.tobytes() + sequence.patches.tobytes()).digest()
    same = hashes.setdefault(digest, episode.id)
    if same != episode.id:
        findings.add("warning", "duplicates", f"{where}: the same tokens as episode {same}; drop one of them")
    if episode.seed is None:
        return
    if episode.seed >= EVALUATION_SEEDS:
        text = f"{where}: its seed {episode.seed} is kept for evaluation (from {EVALUATION_SEEDS} on); drop it"
        findings.add("error", "seeds", text)
    first = seeds.setdefault((episode.agent, episode.seed), episode.id)
    if first != episode.id:
        text = f"{where}: seed {episode.seed} of agent {episode.agent!r} was played in episode {first} already"
        findings.add("warning", "seeds", text)


def _check_whole(findings: _Findings, seen: Survey, context: int | None) -> None:
    path, storage = seen.source.path, seen.source.dataset.storage
    stated = int(storage.total_steps)
    if stated != sum(seen.lengths) and not findings.counts["error", "values"]:
        text = f"{path}: metadata.json states {stated} timesteps, its episodes {sum(seen.lengths)}; {remedy(path)}"
        findings.add("error", "schema", text)
    counted = {str(index) for index in range(len(seen.source))}
    folders = sorted(folder.name for folder in (path / "data").iterdir() if folder.is_dir())
    extra = [name for name in folders if name not in counted] if storage.FORMAT == "arrow" else []
    if extra:
        names = ", ".join(extra[:8]) + (f" and {len(extra) - 8} more" if len(extra) > 8 else "")
        text = f"{path}: metadata.json states {len(counted)} episodes, data/ has {names} too; {remedy(path)}"
        findings.add("error", "schema", text)
    if context is not None and seen.longest > context:
        text = (
            f"{path}: a timestep has {seen.longest} tokens, the context holds {context}; resize images or drop fields"
        )
        findings.add("error", "context", text)
    for of_field in seen.fields:
        name = f"{of_field.role} {of_field.leaf.name}".rstrip()
        if of_field.constant:
            which = "" if of_field.leaf.size == 1 else f", elements {_ranges(of_field.constant)}"
            findings.add("warning", "constant", f"{path}: {name}{which}: one value in all timesteps")
        share = of_field.at_bounds / max(1, of_field.num_values)
        if of_field.role == "action" and share >= SATURATED:
            findings.add("warning", "saturation", f"{path}: {share:.0%} of the values of {name} lie on its bounds")
    values = sum(f.num_values for f in seen.fields if f.role == "observation" and f.leaf.kind == "continuous")
    outside = seen.clipped.observations / max(1, values)
    if outside > OUTSIDE:
        text = (
            f"{path}: {outside:.1%} of the observed values lie outside their bounds and are clipped; widen the space"
        )
        findings.add("warning", "bounds", text)
    if seen.reference is not None:
        for agent, returns in seen.by_agent():
            score = float(seen.reference.score(returns).mean())
            if agent in ("expert", "noisy") and score < LEAST_SCORE:
                text = f"{path}: agent {agent!r} scores {score:.2f} of the expert's return on average; {remedy(path)}"
                findings.add("warning", "returns", text)


def _ranges(numbers: list[int]) -> str:
    """`0-2, 5` for 0, 1, 2 and 5; the first eight runs."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    return ", ".join(shown[:8]) + (f" and {len(runs) - 8} more runs" if len(runs) > 8 else "")
