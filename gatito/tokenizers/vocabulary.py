"""Id ranges: text, continuous bins, discrete values, the separator (Reed et al. 2022, section 2.1)."""

from dataclasses import dataclass
from typing import Any

from gatito.errors import UserError

NUM_DISCRETE = 1024
"""Values that one discrete element may have."""
NUM_LOCAL_POSITIONS = 512
"""Rows of the local position table for observation tokens (appendix of Reed et al. 2022)."""
ACTION_POSITION = NUM_LOCAL_POSITIONS
"""The one local position that all action tokens share."""
TEXT_POSITION = NUM_LOCAL_POSITIONS + 1
"""The local position of text that stands outside any timestep: documents, captions, answers."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Ids by modality. With 32 000 text pieces: text [0, 32000), continuous [32000, 33024), discrete
    [33024, 34048), separator 34048, and an output head of 34 112 rows, a multiple of 64."""

    text_size: int = 32_000
    """Pieces of the SentencePiece model."""
    num_bins: int = 1024
    """Bins of a continuous value, an even number."""
    overlapping_discrete: bool = False
    """The paper's option: discrete ids unshifted, so that they share [0, 1024) with the text."""

    def __post_init__(self) -> None:
        if self.num_bins < 2 or self.num_bins % 2:
            raise UserError(f"num_bins is {self.num_bins}, allowed even numbers: zero is the edge between two bins")
        if self.overlapping_discrete and self.text_size < NUM_DISCRETE:
            raise UserError(
                f"overlapping discrete ids need at least {NUM_DISCRETE} text pieces, got {self.text_size}"
            )

    @property
    def continuous_start(self) -> int:
        """First id of the continuous bins."""
        return self.text_size

    @property
    def discrete_start(self) -> int:
        """First id of the discrete values."""
        return 0 if self.overlapping_discrete else self.text_size + self.num_bins

    @property
    def separator(self) -> int:
        """Id between the observation and the action of a timestep."""
        return self.text_size + self.num_bins + (0 if self.overlapping_discrete else NUM_DISCRETE)

    @property
    def patch(self) -> int:
        """Placeholder where an image patch stands. It is no token: it has no embedding, is never a target,
        and lies in the padding of the head."""
        return self.separator + 1

    @property
    def size(self) -> int:
        """Rows of the embedding and of the head."""
        return -(-(self.patch + 1) // 64) * 64

    @property
    def groups(self) -> dict[str, tuple[int, int]]:
        """Disjoint [start, stop) id ranges that a target can fall in, by name."""
        groups = {
            "text": (0, self.text_size),
            "continuous": (self.continuous_start, self.continuous_start + self.num_bins),
        }
        if not self.overlapping_discrete:
            groups["discrete"] = (self.discrete_start, self.discrete_start + NUM_DISCRETE)
        return groups

    @property
    def modality_ranges(self) -> dict[str, tuple[int, int]]:
        """[start, stop) id ranges by modality, separator and patches among them."""
        return self.groups | {name: (i, i + 1) for name, i in (("separator", self.separator), ("patch", self.patch))}

    def modality(self, token_id: int) -> str:
        """Name what an id stands for: text, continuous, discrete, separator or patch."""
        for name, (start, stop) in self.modality_ranges.items():
            if start <= token_id < stop:
                return name
        return "unused"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "text_size": self.text_size,
            "num_bins": self.num_bins,
            "overlapping_discrete": self.overlapping_discrete,
        }
