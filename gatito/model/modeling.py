"""Decoder-only transformer over tokens of every modality (Reed et al. 2022, section 2.2), transformers-native."""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from gatito.data.packing import BESIDE_ROWS, Batch
from gatito.errors import UserError
from gatito.model.action_decoder import ActionDecoder
from gatito.model.blocks import BranchOut, TrunkBlock
from gatito.model.cache import SessionCache
from gatito.model.configuration import GatitoConfig
from gatito.model.embedding import Embedding, TokenTable, rotary_angles, smooth_rows
from gatito.model.loss import Head, TargetLoss, predicting
from gatito.model.masks import Mask, counted_positions, visible
from gatito.model.resampler import GateTable, Resampler, views
from gatito.tokenizers.vocabulary import TEXT_POSITION

EMBEDDED = ("input_ids", "local_positions", *BESIDE_ROWS, "action_ids", "action_sizes", "following_slots")
"""Fields of a batch that become vectors."""


class GatitoPreTrainedModel(PreTrainedModel):
    """Loading, saving and initial weights."""

    config: GatitoConfig
    config_class = GatitoConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_flex_attn = True
    supports_gradient_checkpointing = True
    _no_split_modules = ["TrunkBlock"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Leaves only: transformers passes over modules of other packages that hold no parameters themselves."""
        std = self.config.initializer_range
        if isinstance(module, BranchOut):
            # Residual branches add up over the depth (Radford et al. 2019).
            nn.init.normal_(module.weight, std=std / (2 * self.config.num_hidden_layers) ** 0.5)
        elif isinstance(module, GateTable):
            nn.init.normal_(module.weight)
        elif isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        # What was loaded is marked, and initial values pass over it; before 5.14 they are asked for all the same.
        if isinstance(module, TokenTable) and not getattr(module.weight, "_is_hf_initialized", False):
            start, stop = self.config.vocabulary.groups["continuous"]
            module.weight[start:stop] = smooth_rows(stop - start, self.config.hidden_size, std)


class GatitoModel(GatitoPreTrainedModel):
    """Embedding, resampler, blocks and the final norm; and the decoder of actions that have no position here."""

    def __init__(self, config: GatitoConfig) -> None:
        super().__init__(config)
        self.embedding = Embedding(config)
        self.blocks = nn.ModuleList(TrunkBlock(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.resampler = Resampler(config) if config.latents else None
        self.action_decoder = ActionDecoder(config) if config.action_layers else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token table."""
        return self.embedding.tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token table."""
        self.embedding.tokens = cast(TokenTable, value)

    def embed(
        self,
        input_ids: Tensor,
        local_positions: Tensor,
        patches: Tensor | None = None,
        patch_indices: Tensor | None = None,
        patch_positions: Tensor | None = None,
        observation_ids: Tensor | None = None,
        observation_sizes: Tensor | None = None,
        latent_slots: Tensor | None = None,
        action_ids: Tensor | None = None,
        action_sizes: Tensor | None = None,
        following_slots: Tensor | None = None,
    ) -> Tensor:
        """What the trunk sees (B, L, D) of ids (B, L) and of the tokens beside them; see `Batch`."""
        images = (patches, patch_indices, patch_positions)
        if observation_ids is None or observation_sizes is None or latent_slots is None:
            x = self.embedding(input_ids, local_positions, *images)
        else:
            assert self.resampler is not None
            sizes = observation_sizes.tolist()
            places = [torch.arange(n, device=input_ids.device).repeat(count) for n, count in sizes]
            ids = torch.cat([input_ids.flatten(), observation_ids])
            embedded = self.embedding(ids, torch.cat([local_positions.flatten(), *places]), *images)
            x, observed = embedded.split([input_ids.numel(), len(observation_ids)])
            latents = self.resampler(observed, sizes).flatten(0, 1)
            x = x.index_copy(0, latent_slots.flatten(), latents.to(x.dtype)).view(*input_ids.shape, -1)
        if action_ids is None or action_sizes is None or following_slots is None:
            return x
        assert self.action_decoder is not None
        taken = self.action_decoder.taken(self.embedding.tokens(action_ids), action_sizes.tolist())[:, 0]
        follows = following_slots >= 0
        x = x.flatten(0, 1).index_add(0, following_slots[follows], taken[follows].to(x.dtype))
        return x.view(*input_ids.shape, -1)

    def forward(self, x: Tensor, positions: Tensor, mask: Mask, cache: Cache | SessionCache | None = None) -> Tensor:
        """What `embed` gives (B, L, D) and positions (B, L) to hidden states (B, L, D)."""
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
        self.lm_head = Head(config.hidden_size, config.vocab_size, bias=False)
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
        observation_ids: Tensor | None = None,
        observation_sizes: Tensor | None = None,
        latent_slots: Tensor | None = None,
        action_ids: Tensor | None = None,
        action_targets: Tensor | None = None,
        action_sizes: Tensor | None = None,
        action_slots: Tensor | None = None,
        following_slots: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> GatitoOutput:
        """Logits (B, L, V) of ids (B, L), or with `loss_mask` the losses at its targets and no logits.

        Rows may hold several `segments` (B, L) that do not see each other (0 is padding); `positions` count inside
        each. Text alone needs nothing but ids, with `attention_mask` (B, S) for left padding. The other arguments
        are the fields of a `Batch`.
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
            positions = counted_positions(attention_mask, B, L, past, input_ids.device)
        flex = self.config._attn_implementation == "flex_attention"
        mask = visible(segments, attention_mask, L, past, input_ids.device, flex)
        x = self.model.embed(
            input_ids=input_ids,
            local_positions=local_positions,
            patches=patches,
            patch_indices=patch_indices,
            patch_positions=patch_positions,
            observation_ids=observation_ids,
            observation_sizes=observation_sizes,
            latent_slots=latent_slots,
            action_ids=action_ids,
            action_sizes=action_sizes,
            following_slots=following_slots,
        )
        hidden = self.model(x, positions, mask, past_key_values)
        if loss_mask is None:
            kept = hidden[:, -logits_to_keep:] if logits_to_keep else hidden
            return GatitoOutput(logits=self.lm_head(kept), past_key_values=past_key_values)
        predicts = predicting(loss_mask, torch.ones_like(input_ids) if segments is None else segments)  # (B, L - 1)
        states, wanted = hidden[:, :-1][predicts], input_ids[:, 1:][predicts]  # (N, D), (N,)
        rows = predicts.nonzero()[:, 0]  # (N,)
        if action_ids is not None and action_targets is not None:
            assert action_sizes is not None
            assert action_slots is not None
            lengths = action_sizes[:, 0].repeat_interleave(action_sizes[:, 1]).to(input_ids.device)  # (A,)
            rows = torch.cat([rows, (action_slots // L).repeat_interleave(lengths)[action_targets]])
            tokens = self.model.embedding.tokens(action_ids)
            of_actions = self.action_states(hidden, tokens, action_sizes, action_slots)
            states = torch.cat([states, of_actions[action_targets].to(states.dtype)])
            wanted = torch.cat([wanted, action_ids[action_targets]])
        vocabulary, over = self.config.vocabulary, self.config.loss_over
        spread = self.config.target_spread if self.training else 0.0
        targets = self.lm_head(states, wanted, vocabulary=vocabulary, over=over, rows=rows, num_rows=B, spread=spread)
        count = torch.stack(list(targets.num_targets.values())).sum().clamp(min=1)
        loss = torch.stack(list(targets.loss_sum.values())).sum() / count
        return GatitoOutput(loss=loss, targets=targets)

    def action_states(self, hidden: Tensor, tokens: Tensor, action_sizes: Tensor, action_slots: Tensor) -> Tensor:
        """States (M, D) that predict each of the embedded action tokens (M, D), given hidden states (B, L, D)."""
        assert self.model.action_decoder is not None
        return self.model.action_decoder(hidden.flatten(0, 1)[action_slots], tokens, action_sizes.tolist())

    def embed_batch(self, batch: Batch) -> Tensor:
        """What the trunk sees (B, L, D) of a batch."""
        return self.model.embed(**{name: tensor for name, tensor in batch.tensors().items() if name in EMBEDDED})

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
            for name in (*BESIDE_ROWS, "local_positions"):
                inputs.pop(name, None)
        elif local is not None:
            written = inputs["input_ids"].shape[1] - local.shape[1]
            inputs["local_positions"] = F.pad(local, (0, written), value=TEXT_POSITION)
            slots = inputs.get("latent_slots")
            if slots is not None:  # they count through the rows, which have become longer
                inputs["latent_slots"] = slots + slots // local.shape[1] * written
        return inputs

    def _expand_inputs_for_generation(self, expand_size: int = 1, **kwargs: Any) -> Any:  # type: ignore[override]
        """Repeat each row for beams or several samples: its patch tokens too, the distinct patches not."""
        given = {name: kwargs.pop(name) for name in BESIDE_ROWS if kwargs.get(name) is not None}
        ids = kwargs["input_ids"]
        expanded, kwargs = super()._expand_inputs_for_generation(expand_size, **kwargs)  # type: ignore[misc]
        return expanded, kwargs | _expanded(given, ids, self.config.vocabulary.patch, expand_size)


def _expanded(given: dict[str, Tensor], ids: Tensor, patch_id: int, times: int) -> dict[str, Tensor]:
    """What stands beside rows of ids (B, L), for rows of which each is repeated `times` times in place."""
    if not given:
        return {}
    counts, device = (ids == patch_id).sum(-1).tolist(), ids.device
    rows = torch.arange(sum(counts), device=device).split(counts)
    taken = torch.cat([row.repeat(times) for row in rows])  # patches of the rows
    beside = dict(given)
    if "latent_slots" in given:
        observed, sizes = given["observation_ids"], given["observation_sizes"]
        parts = views(torch.arange(len(observed), device=device), sizes.tolist())
        tokens = torch.cat([observed[:0], *(part.repeat_interleave(times, 0).flatten() for part in parts)])
        of_tokens = (observed == patch_id).cumsum(0) - 1 + len(taken) // times
        beside["observation_ids"] = observed[tokens]
        taken = torch.cat([taken, of_tokens[tokens][observed[tokens] == patch_id]])
        beside["observation_sizes"] = sizes * torch.tensor([1, times], device=device)
        row, place = given["latent_slots"] // ids.shape[1], given["latent_slots"] % ids.shape[1]  # (G, m)
        copies = row[:, None] * times + torch.arange(times, device=device)[:, None]  # (G, times, m)
        beside["latent_slots"] = (copies * ids.shape[1] + place[:, None]).flatten(0, 1)
    for name in ("patch_indices", "patch_positions"):
        beside[name] = given[name][taken]
    return beside
