"""Keys and values of N sessions of unequal length in one static buffer."""

import torch
from torch import Tensor

from gatito.model.configuration import GatitoConfig
from gatito.model.embedding import rotary_angles, rotate


class SessionCache:
    """Each session's tokens stand at slots 0, 1, 2, ... of its row; a query sees the slots up to its own.

    Tokens that only pad a call to a common width are written behind a row's real ones, where nothing sees them
    before they are overwritten; hence `capacity` exceeds the context by the widest call.
    """

    def __init__(
        self, config: GatitoConfig, num_sessions: int, capacity: int, device: torch.device, dtype: torch.dtype
    ):
        """Allocate (N, H, capacity, head_dim) keys and values per layer."""
        shape = (num_sessions, config.num_attention_heads, capacity, config.head_dim)
        self.config, self.capacity, self.num_sessions = config, capacity, num_sessions
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        self._rows = torch.arange(num_sessions, device=device)
        self._slots = torch.zeros((num_sessions, 1), dtype=torch.int64, device=device)
        self._seen: slice | Tensor = slice(None)
        """Rows that the call reads."""
        self._written: tuple[slice, slice] | None = None
        """The one row and the slots that the call writes, where they are one block of the buffer."""
        self._used = 0

    def begin(self, rows: list[int], positions: Tensor, used: int) -> Tensor:
        """Announce a call: its sessions (R,), in ascending order, and the slots (R, q), below `used`, of its tokens.

        Returns the attention mask (R, 1, q, used).
        """
        first, last = rows[0], rows[-1] + 1
        self._slots, self._used = positions, used
        self._rows = torch.tensor(rows, device=positions.device)
        # Rows that follow each other are read in place, others are copied.
        self._seen = slice(first, last) if last - first == len(rows) else self._rows
        self._written = None
        if len(rows) == 1:
            self._written = slice(first, last), slice(used - positions.shape[1], used)
        return self._mask(positions)

    def begin_static(self, positions: Tensor) -> Tensor:
        """Announce a call of all sessions, with slots (N, q): its shapes depend on nothing but q.

        Returns the attention mask over the whole context (N, 1, q, context).
        """
        self._rows = torch.arange(self.num_sessions, device=positions.device)
        self._seen, self._written = slice(None), None
        self._slots, self._used = positions, self.config.context
        return self._mask(positions)

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Write (R, H, q, head_dim) of a layer and return all keys and values in use."""
        result = []
        for buffer, new in ((self.keys[layer], keys), (self.values[layer], values)):
            if self._written is not None:
                row, slots = self._written
                buffer[row, :, slots] = new
            else:
                buffer[self._rows[:, None], :, self._slots] = new.transpose(1, 2).to(buffer.dtype)
            result.append(buffer[:, :, : self._used][self._seen])
        return result[0], result[1]

    def close_gap(self, row: int, first: int, last: int, used: int) -> None:
        """Take the slots [first, last) out of a session of `used`: those behind move up.

        Their keys are turned back by as many positions, which is exact: rotations add up.
        """
        if first == last:
            return
        device = self.keys[0].device
        back = torch.full((1, used - last), first - last, device=device)
        angles = rotary_angles(back, self.config.head_dim, self.config.rope_theta) if self.config.rotary else None
        for keys, values in zip(self.keys, self.values, strict=True):
            for buffer, is_key in ((keys, True), (values, False)):
                moved = buffer[row, :, last:used].clone()[None]
                if is_key and angles is not None:
                    moved = rotate(moved, angles)
                buffer[row, :, first : used - last + first] = moved[0]

    def _mask(self, positions: Tensor) -> Tensor:
        """In numbers: of truth values each layer would make them anew."""
        slots = torch.arange(self._used, device=positions.device)
        hidden = (slots > positions[:, :, None])[:, None]  # (R, 1, q, used)
        return torch.zeros(hidden.shape, dtype=self.keys[0].dtype, device=hidden.device).masked_fill_(
            hidden, -torch.inf
        )
