"""The shape of the model, as a transformers configuration."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from gatito.errors import UserError
from gatito.tokenizers import Vocabulary
from gatito.tokenizers.trunk import Trunk

MAX_DEPTH = 2
MAX_SPREAD = 100.0


@strict
class GatitoConfig(PreTrainedConfig):
    """Configuration of `GatitoForCausalLM` (Reed et al. 2022, section 2.2 and appendix)."""

    model_type = "gatito"
    attribute_map = {"max_position_embeddings": "context"}  # noqa: RUF012

    hidden_size: int = 128
    """Width of the residual stream."""
    num_hidden_layers: int = 4
    """Transformer blocks."""
    num_attention_heads: int = 4
    """Heads; the paper's head size may differ from width / heads, see `head_dim`."""
    head_dim: int = 32
    """Size of a key, query or value."""
    intermediate_size: int = 344
    """GEGLU hidden width: two projections in, one out. Parameter-matched is 2/3 of the stated feed-forward."""
    context: int = 256
    """Positions of a window."""
    rotary: bool = True
    """Rotary positions beside the paper's local ones, see docs/decisions.md."""
    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths."""
    latents: int = 0
    """Positions of an observation in the trunk; 0 gives each of its tokens one, as in the paper. See `Trunk`."""
    resampler_depth: int = 0
    """Layers of attention of the resampler; 0 is a gated sum and a feed-forward."""
    resample_images: bool = False
    """Whether images outside of timesteps are resampled too."""
    action_layers: int = 0
    """Blocks of the decoder of actions; 0 gives each action token a position in the trunk."""
    drop_path: float = 0.0
    """Stochastic depth per sub-layer; the paper's pretraining is remembered to use 0.1."""
    patch_channels: int = 32
    """Channels of the ResNet block that embeds a patch, a multiple of its 32 groups."""
    layer_norm_eps: float = 1e-5
    """Added to the variance."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""
    loss_over: str = "group"
    """`group`: cross-entropy over the ids of the target's own group; `full`: over the whole vocabulary."""
    target_spread: float = 0.0
    """Bins (standard deviation) over which a continuous target is spread while training; 0 for the one alone."""
    text_size: int = 32_000
    """Text pieces, see `Vocabulary`."""
    num_bins: int = 1024
    """Bins of a continuous value, see `Vocabulary`."""
    overlapping_discrete: bool = False
    """The paper's unshifted discrete ids, see `Vocabulary`."""
    vocab_size: int = 34_112
    """Rows of the embedding and the head; follows from the three above."""
    tie_word_embeddings: bool = True
    """Whether the head is the embedding (paper: shared)."""
    use_cache: bool = True
    """Whether `generate` keeps keys and values."""
    eos_token_id: int | None = 2
    """Ends a text."""
    pad_token_id: int | None = 0
    """Fills rows of unequal length; masked everywhere."""

    def __post_init__(self, **kwargs: Any) -> None:
        self.vocab_size = self.vocabulary.size
        if self.patch_channels % 32:
            raise UserError(f"patch_channels is {self.patch_channels}, allowed multiples of 32 (GroupNorm groups)")
        if self.rotary and self.head_dim % 2:
            raise UserError(f"head_dim is {self.head_dim}; rotary positions need an even one")
        if self.loss_over not in ("group", "full"):
            raise UserError(f"loss_over is {self.loss_over!r}, allowed 'group' or 'full'")
        if not 0 <= self.target_spread <= MAX_SPREAD:
            raise UserError(f"target_spread is {self.target_spread}, allowed 0 to {MAX_SPREAD} bins")
        if not 0 <= self.resampler_depth <= MAX_DEPTH:
            raise UserError(f"resampler_depth is {self.resampler_depth}, allowed 0 to {MAX_DEPTH}")
        if self.action_layers < 0:
            raise UserError(f"action_layers is {self.action_layers}, allowed 0 (none) and more")
        if self.resampler_depth and not self.latents:
            raise UserError(f"resampler_depth is {self.resampler_depth}, but latents is 0: there is no resampler")
        self.trunk.to_json()  # raises where latents and resample_images do not go together
        super().__post_init__(**kwargs)

    @property
    def trunk(self) -> Trunk:
        """Which tokens have positions."""
        return Trunk(
            vocabulary=self.vocabulary,
            latents=self.latents,
            resample_images=self.resample_images,
            decoded_actions=self.action_layers > 0,
        )

    @property
    def vocabulary(self) -> Vocabulary:
        """The id ranges."""
        return Vocabulary(
            text_size=self.text_size,
            num_bins=self.num_bins,
            overlapping_discrete=self.overlapping_discrete,
        )
