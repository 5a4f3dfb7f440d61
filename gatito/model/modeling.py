"""Decoder-only transformer over tokens of every modality (Reed et al. 2022, section 2.2), transformers-native."""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from gatito.errors import UserError
from gatito.model.cache import SessionCache
from gatito.model.configuration import GatitoConfig
from gatito.model.embedding import Embedding, TokenTable, rotary_angles, rotate, smooth_rows
from gatito.model.loss import TargetLoss, next_token_loss
from gatito.tokenizers.vocabulary import TEXT_POSITION


class BranchOut(nn.Linear):
    """The last layer of a residual branch."""


class Attention(nn.Module):
    """Causal multi-head attention, through PyTorch's fused kernel."""

    def __init__(self, config: GatitoConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        inner = config.num_attention_heads * config.head_dim
        self.qkv = nn.Linear(config.hidden_size, 3 * inner, bias=False)
        self.out = BranchOut(inner, config.hidden_size, bias=False)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        angles: tuple[Tensor, Tensor] | None,
        cache: Cache | SessionCache | None,
    ) -> Tensor:
        """Map (B, L, D) to (B, L, D); `mask` is (B, 1, L, S), None for plain causal attention."""
        B, L, _ = x.shape
        q, k, v = self.qkv(x).view(B, L, 3, -1, self.head_dim).permute(2, 0, 3, 1, 4)  # each (B, H, L, head_dim)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.out(x.transpose(1, 2).reshape(B, L, -1))


class GEGLU(nn.Module):
    """Gated feed-forward: gelu(gate) * value, projected back (Shazeer 2020)."""

    def __init__(self, config: GatitoConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.value = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.out = BranchOut(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, D) to (B, L, D)."""
        return self.out(F.gelu(self.gate(x)) * self.value(x))


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each dropped per row with probability `drop_path` in training."""

    def __init__(self, config: GatitoConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = GEGLU(config)
        self.drop_path = config.drop_path

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        angles: tuple[Tensor, Tensor] | None,
        cache: Cache | SessionCache | None,
    ) -> Tensor:
        """Map (B, L, D) to (B, L, D)."""
        x = x + self._dropped(self.attention(self.attention_norm(x), mask, angles, cache))
        return x + self._dropped(self.feed_forward(self.feed_forward_norm(x)))

    def _dropped(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return branch
        keep = 1.0 - self.drop_path
        kept = torch.empty((len(branch), 1, 1), dtype=branch.dtype, device=branch.device).bernoulli_(keep)
        return branch * kept / keep


class GatitoPreTrainedModel(PreTrainedModel):
    """Loading, saving and initial weights."""

    config: GatitoConfig
    config_class = GatitoConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _no_split_modules = ["Block"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Leaves only: transformers passes over modules of other packages that hold no parameters themselves."""
        std = self.config.initializer_range
        if isinstance(module, BranchOut):
            # Residual branches add up over the depth (Radford et al. 2019).
            nn.init.normal_(module.weight, std=std / (2 * self.config.num_hidden_layers) ** 0.5)
        elif isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, TokenTable):
            start, stop = self.config.vocabulary.groups["continuous"]
            module.weight[start:stop] = smooth_rows(stop - start, self.config.hidden_size, std)


class GatitoModel(GatitoPreTrainedModel):
    """Embedding, blocks and the final norm."""

    def __init__(self, config: GatitoConfig) -> None:
        super().__init__(config)
        self.embedding = Embedding(config)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token table."""
        return self.embedding.tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token table."""
        self.embedding.tokens = cast(TokenTable, value)

    def forward(
        self,
        input_ids: Tensor,
        local_positions: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        cache: Cache | SessionCache | None = None,
        patches: Tensor | None = None,
        patch_indices: Tensor | None = None,
        patch_positions: Tensor | None = None,
    ) -> Tensor:
        """Ids (B, L) and what belongs to them to hidden states (B, L, D)."""
        x = self.embedding(input_ids, local_positions, patches, patch_indices, patch_positions)
        config = self.config
        angles = rotary_angles(positions, config.head_dim, config.rope_theta) if config.rotary else None
        for block in self.blocks:
            x = block(x, mask, angles, cache)
        return self.norm(x)


@dataclass
class GatitoOutput(CausalLMOutputWithPast):
    """Output of `GatitoForCausalLM`."""

    targets: TargetLoss | None = None
    """Loss, targets and hits by id group, where a loss mask was given."""


class TextOnly(LogitsProcessor):
    """Leaves only the ids of text: the other groups are trained for actions."""

    def __init__(self, text_size: int) -> None:
        """`text_size` ids are text."""
        self.text_size = text_size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores with everything but text at minus infinity."""
        scores[:, self.text_size :] = -torch.inf
        return scores


class GatitoForCausalLM(GatitoPreTrainedModel, GenerationMixin):
    """The agent's network: hidden states to the next token of any modality."""

    _tied_weights_keys = {"lm_head.weight": "model.embedding.tokens.weight"}  # noqa: RUF012

    def __init__(self, config: GatitoConfig) -> None:
        super().__init__(config)
        self.model = GatitoModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        loss_mask: Tensor | None = None,
        local_positions: Tensor | None = None,
        segments: Tensor | None = None,
        positions: Tensor | None = None,
        position_ids: Tensor | None = None,
        patches: Tensor | None = None,
        patch_indices: Tensor | None = None,
        patch_positions: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> GatitoOutput:
        """Logits (B, L, V) of ids (B, L), or with `loss_mask` the losses at its targets and no logits.

        Rows may hold several `segments` (B, L) that do not see each other (0 is padding); `positions` count inside
        each. Text alone needs nothing but ids, with `attention_mask` (B, S) for left padding.
        """
        if "labels" in kwargs:
            raise UserError("gatito takes a loss_mask (B, L) beside the ids, not labels; targets are shifted inside")
        B, L = input_ids.shape
        if local_positions is None:
            local_positions = torch.full_like(input_ids, TEXT_POSITION)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if positions is None:
            positions = position_ids
        if positions is None:
            positions = _counted_positions(attention_mask, B, L, past, input_ids.device)
        mask = _attention_mask(segments, attention_mask, L, past, input_ids.device)
        hidden = self.model(
            input_ids, local_positions, positions, mask, past_key_values, patches, patch_indices, patch_positions
        )
        if loss_mask is None:
            kept = hidden[:, -logits_to_keep:] if logits_to_keep else hidden
            return GatitoOutput(logits=self.lm_head(kept), past_key_values=past_key_values)
        if segments is None:
            segments = torch.ones_like(input_ids)
        targets = next_token_loss(
            hidden, self.lm_head.weight, input_ids, loss_mask, segments, self.config.vocabulary, self.config.loss_over
        )
        count = torch.stack(list(targets.num_targets.values())).sum().clamp(min=1)
        loss = torch.stack(list(targets.loss_sum.values())).sum() / count
        return GatitoOutput(loss=loss, targets=targets)

    def step(
        self,
        input_ids: Tensor,
        local_positions: Tensor,
        positions: Tensor,
        rows: Tensor,
        cache: SessionCache,
        patches: Tensor | None = None,
        patch_indices: Tensor | None = None,
        patch_positions: Tensor | None = None,
    ) -> Tensor:
        """Feed q new tokens (R, q) of the sessions `rows` and return their hidden states (R, q, D)."""
        mask = cache.begin(rows, positions)
        return self.model(input_ids, local_positions, positions, mask, cache, patches, patch_indices, patch_positions)

    def logits_over(self, hidden: Tensor, start: int, stop: int) -> Tensor:
        """Logits (..., stop - start) of the ids [start, stop) for hidden states (..., D)."""
        return hidden @ self.lm_head.weight[start:stop].T

    def generate(self, *args: Any, logits_processor: LogitsProcessorList | None = None, **kwargs: Any) -> Any:
        """transformers' `generate`, restricted to text ids."""
        processors = LogitsProcessorList([TextOnly(self.config.text_size), *(logits_processor or [])])
        return super().generate(*args, logits_processor=processors, **kwargs)  # type: ignore[misc]

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, **kwargs: Any
    ) -> dict[str, Any]:
        """With a cache, images belong to the first call only; whatever follows the prompt is text."""
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)  # type: ignore[misc, arg-type]
        cache, local = inputs.get("past_key_values"), inputs.get("local_positions")
        if cache is not None and cache.get_seq_length() > 0:
            for name in ("patches", "patch_indices", "patch_positions", "local_positions"):
                inputs.pop(name, None)
        elif local is not None:
            written = inputs["input_ids"].shape[1] - local.shape[1]
            inputs["local_positions"] = F.pad(local, (0, written), value=TEXT_POSITION)
        return inputs

    def _expand_inputs_for_generation(self, expand_size: int = 1, **kwargs: Any) -> Any:  # type: ignore[override]
        """Repeat each row for beams or several samples: its patch tokens too, the distinct patches not."""
        images = {name: kwargs.pop(name, None) for name in ("patches", "patch_indices", "patch_positions")}
        rows = kwargs["input_ids"] == self.config.vocabulary.patch
        ids, kwargs = super()._expand_inputs_for_generation(expand_size, **kwargs)  # type: ignore[misc]
        if images["patches"] is not None:
            counts = rows.sum(-1).tolist()
            for name in ("patch_indices", "patch_positions"):
                parts = [part.repeat(expand_size, *[1] * (part.ndim - 1)) for part in images[name].split(counts)]
                images[name] = torch.cat(parts)
            kwargs |= images
        return ids, kwargs


def _counted_positions(attention_mask: Tensor | None, B: int, L: int, past: int, device: torch.device) -> Tensor:
    """Positions (B, L) counted from each row's first token that is no padding."""
    if attention_mask is None:
        return torch.arange(past, past + L, device=device).expand(B, L)
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -L:]


def _attention_mask(
    segments: Tensor | None, attention_mask: Tensor | None, L: int, past: int, device: torch.device
) -> Tensor | None:
    """Who sees whom, (B, 1, L, past + L): the past of the same segment. None means plain causal attention.

    segments 1 1 2 2    1 . . .
                        1 1 . .
                        . . 2 .
                        . . 2 2
    """
    if segments is None and attention_mask is None and past == 0:
        return None
    causal = torch.ones(L, past + L, dtype=torch.bool, device=device).tril(past)
    if segments is not None:
        return (causal & (segments[:, :, None] == segments[:, None, :]))[:, None]
    if attention_mask is None:
        return causal[None, None]
    # A padded query sees itself, so that no row of the softmax is empty.
    own = torch.eye(past + L, dtype=torch.bool, device=device)[past:]
    return ((causal & attention_mask.bool()[:, None, :]) | own)[:, None]
