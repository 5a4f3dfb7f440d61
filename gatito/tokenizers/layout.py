"""The order of tokens in a timestep, said here and nowhere else.

    observation fields in lexicographic key order | separator | action fields in lexicographic key order
      local positions 0, 1, 2, ...                    next      one shared position, and the targets

Training calls `episode_tokens`; acting calls `observation_tokens`, which goes through the same `_tokens`, then
`action_tokens` and `action_from_tokens`. (Reed et al. 2022, sections 2.1 and 2.2.)
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from gatito.errors import UserError
from gatito.tokenizers.codec import as_array, decode, encode, is_clipped, legal_ids
from gatito.tokenizers.fields import (
    Field,
    Path,
    build_tree,
    evenly_binned,
    fields_of,
    is_evenly_binned,
    value_at,
)
from gatito.tokenizers.patches import PATCH, patch_intervals, to_patches
from gatito.tokenizers.sequence import TokenSequence
from gatito.tokenizers.text import TextTokenizer
from gatito.tokenizers.vocabulary import ACTION_POSITION, NUM_LOCAL_POSITIONS, Vocabulary


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one pair of observation and action spaces becomes tokens."""

    vocabulary: Vocabulary
    """Id ranges."""
    text: TextTokenizer
    """Turns text inside observations, such as a mission, into ids."""
    observations: tuple[Field, ...]
    """Leaves of the observation space, in the order of their tokens."""
    actions: tuple[Field, ...]
    """Leaves of the action space, in the order of their tokens."""

    @classmethod
    def from_spaces(
        cls,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        vocabulary: Vocabulary,
        text: TextTokenizer,
        overrides: Mapping[str, str] | None = None,
    ) -> "Layout":
        """Derive the layout; raises `UserError` for spaces that cannot be serialized."""
        layout = cls(
            vocabulary=vocabulary,
            text=text,
            observations=fields_of(observation_space, "observation", overrides),
            actions=fields_of(action_space, "action"),
        )
        tokens = layout.num_observation_tokens
        if tokens > NUM_LOCAL_POSITIONS:
            raise UserError(
                f"an observation of this {type(observation_space).__name__} space has {tokens} tokens, allowed "
                f"{NUM_LOCAL_POSITIONS}; resize its images or drop fields"
            )
        return layout

    def binned_over(self, episodes: Iterable[Any]) -> "Layout":
        """The layout with observed values binned evenly over their range in episodes instead of companded.

        `episodes` are nested observations with a leading T axis. Fields that are not companded stay as they are.
        """
        fields = [field for field in self.observations if any(field.mu_law)]
        low = {field.path: np.full(field.size, np.inf) for field in fields}
        high = {field.path: np.full(field.size, -np.inf) for field in fields}
        for observations in episodes:
            for field in fields:
                values = np.asarray(value_at(observations, field.path), np.float64).reshape(-1, field.size)
                low[field.path] = np.minimum(low[field.path], values.min(axis=0))
                high[field.path] = np.maximum(high[field.path], values.max(axis=0))
        return dataclasses.replace(
            self,
            observations=tuple(
                evenly_binned(field, low[field.path], high[field.path]) if field.path in low else field
                for field in self.observations
            ),
        )

    def binned_as(self, other: "Layout") -> "Layout":
        """The layout with the bins of another one in those fields that have the same values."""
        theirs = {field.path: field for field in other.observations}
        return dataclasses.replace(
            self,
            observations=tuple(
                theirs[field.path] if field.path in theirs and is_evenly_binned(theirs[field.path], field) else field
                for field in self.observations
            ),
        )

    @property
    def num_observation_tokens(self) -> int:
        """Tokens of an observation with its separator, where all of its texts are empty."""
        return sum(field.num_tokens or 0 for field in self.observations) + 1

    @property
    def num_action_tokens(self) -> int:
        """Action tokens per timestep."""
        return sum(field.size for field in self.actions)

    def empty_timestep(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids and local positions (N,) of a timestep whose values and texts are left out: what stands where."""
        observed = self.num_observation_tokens
        ids = np.zeros(observed + self.num_action_tokens, np.int64)
        ids[observed - 1] = self.vocabulary.separator
        local = np.full(len(ids), ACTION_POSITION)
        local[:observed] = np.arange(observed)
        return ids, local

    @cached_property
    def legal_ids(self) -> tuple[tuple[int, int], ...]:
        """[start, stop) ids that each action token may have, in order."""
        return tuple(ids for field in self.actions for ids in legal_ids(field, self.vocabulary))

    def episode_tokens(
        self, observations: Any, actions: Any, *, targets: NDArray[np.bool_] | None = None, where: str = "episode"
    ) -> TokenSequence:
        """Tokens of T timesteps: nested observations and actions with a leading T axis.

        `targets` (T,) leaves the actions of some timesteps out of the loss. `where` names the episode in errors.
        """
        return self._tokens(observations, actions, targets, where)

    def observation_tokens(self, observation: Any, where: str = "observation") -> TokenSequence:
        """Tokens of one observation and the separator: what the model sees before it acts."""
        return self._tokens(self.with_time_axis(observation, where), None, None, where)

    def with_time_axis(self, observation: Any, where: str = "observation") -> Any:
        """One observation as those of an episode of one timestep."""
        return self._one(observation, self.observations, where)

    def num_clipped(self, observations: Any) -> int:
        """How many values of nested observations with a leading T axis are clipped: see `is_clipped`."""
        fields = [field for field in self.observations if field.kind == "continuous"]
        return sum(int(np.count_nonzero(is_clipped(f, value_at(observations, f.path)))) for f in fields)

    def action_tokens(self, ids: Sequence[int] | NDArray[np.integer]) -> TokenSequence:
        """A sequence of the given action ids, to be appended to `observation_tokens` while acting."""
        n = len(ids)
        return TokenSequence(
            ids=np.asarray(ids, np.int32),
            loss_mask=np.ones(n, np.bool_),
            local_positions=np.full(n, ACTION_POSITION, np.int32),
            patches=np.zeros((0, PATCH, PATCH, 3), np.uint8),
            patch_intervals=np.zeros((0, 4), np.uint8),
            timestep_starts=np.zeros(1, np.int64),
        )

    def action_ids(self, actions: Any, where: str = "episode") -> NDArray[np.int64]:
        """Ids (T, A) of nested actions with a leading T axis; `actions_from_ids` undoes it."""
        columns = []
        for field in self.actions:
            values = self._values(actions, field, self.actions, where)
            columns.append(encode(field, values, self.vocabulary, f"{where}, action {field.name}".rstrip()))
        lengths = {len(column) for column in columns}
        if len(lengths) > 1:
            raise UserError(f"{where}: its action fields have {sorted(lengths)} timesteps; they must agree")
        return np.concatenate(columns, axis=1)

    def ids_of_action(self, action: Any, where: str = "action") -> NDArray[np.int64]:
        """Ids (A,) of one action; `action_from_tokens` undoes it."""
        return self.action_ids(self._one(action, self.actions, where), where)[0]

    def actions_from_ids(self, ids: NDArray[np.integer]) -> Any:
        """Nested actions with a leading T axis of ids (T, A), bin centres within the bounds."""
        leaves: dict[Path, Any] = {}
        start = 0
        for field in self.actions:
            leaves[field.path] = decode(field, ids[:, start : start + field.size], self.vocabulary)
            start += field.size
        return build_tree(leaves)

    def action_from_tokens(self, ids: Sequence[int] | NDArray[np.integer]) -> Any:
        """The action for the environment, from the ids of one timestep's action tokens."""
        row = np.asarray(ids)[None]
        for j, (start, stop) in enumerate(self.legal_ids):
            if not start <= row[0, j] < stop:
                raise UserError(f"action token {j} is {row[0, j]}, legal are [{start}, {stop})")
        actions = self.actions_from_ids(row)
        leaves = {f.path: value_at(actions, f.path)[0] for f in self.actions}
        return build_tree(leaves)

    def to_json(self) -> dict[str, Any]:
        """Return the layout as JSON values; the text model by its hash."""
        fields = {"observations": self.observations, "actions": self.actions}
        return {
            "vocabulary": self.vocabulary.to_json(),
            "text_sha256": self.text.sha256,
            **{key: [dataclasses.asdict(field) for field in value] for key, value in fields.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], text: TextTokenizer) -> "Layout":
        """Undo `to_json`; raises `UserError` where the text model is another."""
        if values["text_sha256"] != text.sha256:
            raise UserError(
                f"the layout was made with text model {values['text_sha256'][:12]}, this one is {text.sha256[:12]}"
            )

        def fields(key: str) -> tuple[Field, ...]:
            rows: list[dict[str, Any]] = values[key]
            frozen: list[dict[str, Any]] = [
                {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows
            ]
            return tuple(Field(**row) for row in frozen)

        return cls(
            vocabulary=Vocabulary(**values["vocabulary"]),
            text=text,
            observations=fields("observations"),
            actions=fields("actions"),
        )

    @cached_property
    def sha256(self) -> str:
        """Hash of the layout, compared wherever data meets a checkpoint."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def _tokens(
        self, observations: Any, actions: Any, targets: NDArray[np.bool_] | None, where: str
    ) -> TokenSequence:
        """Lay out T timesteps; without `actions` each ends with its separator."""
        columns = [self._column(field, observations, where) for field in self.observations]
        T = len(columns[0].ids)
        columns.append(_Column.of(np.full((T, 1), self.vocabulary.separator)))
        self._check_observations(columns, where)
        observed = sum(column.ids.shape[1] for column in columns)
        if actions is not None:
            columns.append(_Column.of(self.action_ids(actions, where)))
            if len(columns[-1].ids) != T:
                raise UserError(
                    f"{where}: {len(columns[-1].ids)} actions for {T} observations; there must be one for each, "
                    "drop an observation that has none"
                )
        counts: NDArray[np.int64] = np.sum([column.lengths for column in columns], axis=0)  # (T,)
        ids = np.concatenate([column.ids for column in columns], axis=1, dtype=np.int32)  # (T, W)
        local = np.empty_like(ids)
        local[:] = np.arange(ids.shape[1])
        is_token: Any = np.s_[:, :]
        if (counts < ids.shape[1]).any():  # texts of several lengths
            is_token = np.concatenate([column.is_token for column in columns], axis=1)  # (T, W)
            local[:] = np.cumsum(is_token, axis=1) - 1
        local[:, observed:] = ACTION_POSITION
        loss_mask = np.zeros(ids.shape, np.bool_)
        loss_mask[:, observed:] = True if targets is None else np.asarray(targets, np.bool_)[:, None]
        patches, intervals = self._patches(observations, T, where)
        return TokenSequence(
            ids=ids[is_token].ravel(),
            loss_mask=loss_mask[is_token].ravel(),
            local_positions=local[is_token].ravel(),
            patches=patches,
            patch_intervals=intervals,
            timestep_starts=np.append(0, np.cumsum(counts)),
        )

    def _column(self, field: Field, observations: Any, where: str) -> "_Column":
        at = f"{where}, observation {field.name}".rstrip()
        values = self._values(observations, field, self.observations, where)
        if field.kind == "text":
            return _Column.of_texts(values, self.text, at)
        if field.kind == "image":
            num_patches = field.num_tokens or 0
            return _Column.of(np.full((len(values), num_patches), self.vocabulary.patch))
        return _Column.of(encode(field, values, self.vocabulary, at))

    def _patches(self, observations: Any, T: int, where: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Patches (P, 16, 16, 3) and intervals (P, 4) of all image fields, in the order of their tokens."""
        pixels, intervals = [], []
        for field in self.observations:
            if field.kind == "image":
                at = f"{where}, observation {field.name}".rstrip()
                images = as_array(field, value_at(observations, field.path), at)
                pixels.append(to_patches(images.astype(np.uint8, copy=False)))
                intervals.append(patch_intervals(*field.shape[:2]))
        if not pixels:
            return np.zeros((0, PATCH, PATCH, 3), np.uint8), np.zeros((0, 4), np.uint8)
        cut = pixels[0] if len(pixels) == 1 else np.concatenate(pixels, axis=1)  # (T, P / T, 16, 16, 3)
        return cut.reshape(-1, PATCH, PATCH, 3), np.tile(np.concatenate(intervals), (T, 1))

    def _values(self, tree: Any, field: Field, fields: tuple[Field, ...], where: str) -> Any:
        try:
            return value_at(tree, field.path)
        except (KeyError, IndexError, TypeError):
            raise UserError(self._mismatch(tree, fields, where)) from None

    def _one(self, tree: Any, fields: tuple[Field, ...], where: str) -> Any:
        """A nested value of one timestep, with a time axis."""
        try:
            return build_tree({f.path: [value_at(tree, f.path)] for f in fields})
        except (KeyError, IndexError, TypeError):
            raise UserError(self._mismatch(tree, fields, where)) from None

    @staticmethod
    def _mismatch(tree: Any, fields: tuple[Field, ...], where: str) -> str:
        expected = ", ".join(f.name or f"an array {f.shape} of {f.dtype}" for f in fields)
        got = sorted(tree) if isinstance(tree, dict) else type(tree).__name__
        return f"{where}: does not match its space; expected fields {expected}, got {got}"

    @staticmethod
    def _check_observations(columns: list["_Column"], where: str) -> None:
        """Raise `UserError` for fields of unequal T, no timesteps, and too many tokens in one of them."""
        lengths = {len(column.ids) for column in columns}
        if len(lengths) > 1:
            raise UserError(f"{where}: its fields have {sorted(lengths)} timesteps; they must agree")
        if lengths == {0}:
            raise UserError(f"{where}: no timesteps; drop the episode")
        num_observed: NDArray[np.int64] = np.sum([column.lengths for column in columns], axis=0)
        if num_observed.max() > NUM_LOCAL_POSITIONS:
            t = int(num_observed.argmax())
            raise UserError(
                f"{where}, timestep {t}: {num_observed[t]} observation tokens, allowed {NUM_LOCAL_POSITIONS}; "
                "shorten its text or resize its images"
            )


@dataclass(frozen=True)
class _Column:
    """The ids of one field over T timesteps, a row for each."""

    ids: NDArray[np.integer]
    """(T, n) ids; texts shorter than the longest are padded at the end."""
    lengths: NDArray[np.int64]
    """(T,) how many of a row's ids are tokens."""

    @property
    def is_token(self) -> NDArray[np.bool_]:
        """(T, n) what is no padding."""
        return np.arange(self.ids.shape[1]) < self.lengths[:, None]

    @classmethod
    def of(cls, ids: NDArray[np.integer]) -> "_Column":
        T, n = ids.shape
        return cls(ids, np.full(T, n))

    @classmethod
    def of_texts(cls, texts: Sequence[str], tokenizer: TextTokenizer, where: str) -> "_Column":
        """Each distinct text is tokenized once: a mission stays the same for a whole episode.

        Ids after the first `NUM_LOCAL_POSITIONS` of a text are left out: so many tokens are refused.
        """
        rows_of: dict[str, list[int]] = {}
        for t, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"{where}, timestep {t}: {type(text).__name__}, expected text")
            rows_of.setdefault(str(text), []).append(t)
        pieces = [tokenizer.encode(text) for text in rows_of]
        longest = min(max(map(len, pieces), default=0), NUM_LOCAL_POSITIONS)
        ids, lengths = np.zeros((len(texts), longest), np.int32), np.zeros(len(texts), np.int64)
        for rows, text_ids in zip(rows_of.values(), pieces, strict=True):
            lengths[rows] = len(text_ids)
            ids[rows, : len(text_ids)] = text_ids[:longest]
        return cls(ids, lengths)
