"""Keys and values of N sessions of unequal length in one static buffer."""

import torch
from torch import Tensor

from gatito.model.configuration import GatitoConfig


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
        self.capacity = capacity
        self._keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self._values = [torch.zeros_like(keys) for keys in self._keys]
        self._rows = torch.arange(num_sessions, device=device)
        self._all_rows = True
        self._slots = torch.zeros((num_sessions, 1), dtype=torch.int64, device=device)
        self._used = 0

    def begin(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Announce a call: its sessions (R,) and the slots (R, q) of its tokens.

        Returns the attention mask (R, 1, q, slots in use).
        """
        self._rows, self._slots = rows, positions
        self._all_rows = len(rows) == len(self._keys[0])
        self._used = int(positions.max()) + 1
        slots = torch.arange(self._used, device=positions.device)
        return (slots <= positions[:, :, None])[:, None]

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Write (R, H, q, head_dim) of a layer and return all keys and values in use."""
        result = []
        for buffer, new in ((self._keys[layer], keys), (self._values[layer], values)):
            buffer[self._rows[:, None], :, self._slots] = new.transpose(1, 2).to(buffer.dtype)
            used = buffer[:, :, : self._used]
            result.append(used if self._all_rows else used[self._rows])
        return result[0], result[1]
