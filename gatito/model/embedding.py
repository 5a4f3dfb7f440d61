"""Tokens and patches to vectors, with their positions inside the timestep and the image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatito.model.configuration import GatitoConfig
from gatito.tokenizers.patches import NUM_PATCH_POSITIONS, PATCH
from gatito.tokenizers.vocabulary import TEXT_POSITION

GROUPS = 32


class PatchEmbedding(nn.Module):
    """One pre-activation ResNet block per patch, GroupNorm of 32 groups and GELU, then a linear layer.

    A stride-4 convolution in front keeps it in proportion to the trunk (Reed et al. 2022, appendix, gives the
    block but not its stem).
    """

    def __init__(self, config: GatitoConfig) -> None:
        super().__init__()
        channels = config.patch_channels
        self.stem = nn.Conv2d(3, channels, 4, stride=4)
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(GROUPS, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.project = nn.Linear(channels * (PATCH // 4) ** 2, config.hidden_size)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches (U, 16, 16, 3) of uint8 to vectors (U, D)."""
        dtype = self.stem.weight.dtype
        # Pixels to [-1, 1], then divided by sqrt(16) (Reed et al. 2022, section 2.1).
        pixels = (patches.to(dtype) / 127.5 - 1.0) / PATCH**0.5
        x = self.stem(pixels.permute(0, 3, 1, 2))  # (U, C, 4, 4)
        h = self.conv1(F.gelu(self.norm1(x)))
        x = x + self.conv2(F.gelu(self.norm2(h)))
        return self.project(x.flatten(1))


class TokenTable(nn.Embedding):
    """Rows of all ids, which the head shares."""


class Embedding(nn.Module):
    """Sum of what a token is and where it stands in its timestep; patches also where in the image."""

    def __init__(self, config: GatitoConfig) -> None:
        super().__init__()
        self.tokens = TokenTable(config.vocab_size, config.hidden_size)
        self.local_positions = nn.Embedding(TEXT_POSITION + 1, config.hidden_size)
        self.patches = PatchEmbedding(config)
        self.patch_rows = nn.Embedding(NUM_PATCH_POSITIONS, config.hidden_size)
        self.patch_columns = nn.Embedding(NUM_PATCH_POSITIONS, config.hidden_size)
        self.patch_id = config.vocabulary.patch

    def forward(
        self,
        input_ids: Tensor,
        local_positions: Tensor,
        patches: Tensor | None,
        patch_indices: Tensor | None,
        patch_positions: Tensor | None,
    ) -> Tensor:
        """Ids (B, L), patches (U, 16, 16, 3), their use (P,) and places (P, 2) to vectors (B, L, D)."""
        x = self.tokens(input_ids)
        there = patch_indices is not None and (len(patch_indices) > 0 or self.training)  # gradients: see `views`
        if there and patches is not None and patch_positions is not None:
            where = self.patch_rows(patch_positions[:, 0]) + self.patch_columns(patch_positions[:, 1])
            vectors = self.patches(patches)[patch_indices] + where  # (P, D)
            x = x.masked_scatter((input_ids == self.patch_id)[..., None], vectors.to(x.dtype))
        return x + self.local_positions(local_positions)


def smooth_rows(num_rows: int, width: int, std: float) -> Tensor:
    """Initial vectors (num_rows, width) of ordered bins: neighbours alike, so that what is learned of one value
    holds near it from the first step. Random Fourier features, a sixth of a period to sixteen over the range, twice
    as large as other rows: docs/decisions.md."""
    place = torch.arange(num_rows)[:, None] / num_rows
    periods = 10 ** (2 * torch.rand(width) - 0.8)
    return 2 * std * 2**0.5 * torch.cos(2 * torch.pi * (place * periods + torch.rand(width)))


def rotary_angles(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, 1, L, head_dim) for positions (B, L) (Su et al. 2021)."""
    powers = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions[:, None, :, None].float() * theta**-powers  # (B, 1, L, head_dim / 2)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Turn queries, keys or both (..., B, H, L, head_dim) by the angles of their positions."""
    cos, sin = angles
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)
