"""What a training run is made of; recipes are YAML files of these."""

import math
from dataclasses import dataclass, field
from typing import Literal

from gatito.errors import UserError
from gatito.eval.scores import Prompt
from gatito.model import GatitoConfig
from gatito.model.configuration import MAX_DEPTH, MAX_SPREAD
from gatito.tokenizers import Vocabulary
from gatito.tokenizers.trunk import MAX_LATENTS

MAX_EVALUATION_S = 6000
"""Seconds of an evaluation, less than processes wait for each other."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the network; the vocabulary comes from the data."""

    width: int = 128
    """Residual stream."""
    layers: int = 4
    """Transformer blocks."""
    heads: int = 4
    """Attention heads."""
    head_dim: int = 32
    """Size of a key, query or value."""
    feed_forward: int = 344
    """GEGLU hidden width; parameter-matched is 2/3 of a plain feed-forward of four times the width."""
    patch_channels: int = 32
    """Channels of the patch embedding, a multiple of 32."""
    rotary: bool = True
    """Rotary positions beside the paper's local ones."""
    latents: int = 1
    """Positions of an observation in the trunk, 1 to 8; 0 gives each of its tokens one, as in the paper."""
    resampler_depth: int = 0
    """Layers of attention that read an observation into its latents; 0 is a gated sum and a feed-forward."""
    resample_images: bool = False
    """Whether images of captions are read into latents too."""
    action_layers: int = 1
    """Blocks of the decoder of actions; 0 gives each action token a position in the trunk, as in the paper."""
    drop_path: float = 0.0
    """Stochastic depth per sub-layer (paper's pretraining: 0.1, as remembered)."""
    loss_over: Literal["group", "full"] = "group"
    """Ids that the cross-entropy compares a target with: those of its group, or the whole vocabulary."""
    target_spread: float = 0.0
    """Bins (standard deviation) over which a continuous target is spread while training; 0 for the one alone."""

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "head_dim", "feed_forward", "patch_channels"):
            if getattr(self, name) < 1:
                raise UserError(f"--model.{name} is {getattr(self, name)}, allowed 1 and more")
        if not 0 <= self.latents <= MAX_LATENTS:
            raise UserError(f"--model.latents is {self.latents}, allowed 0 (a position each) to {MAX_LATENTS}")
        if not 0 <= self.resampler_depth <= MAX_DEPTH:
            raise UserError(f"--model.resampler_depth is {self.resampler_depth}, allowed 0 to {MAX_DEPTH}")
        if self.action_layers < 0:
            raise UserError(f"--model.action_layers is {self.action_layers}, allowed 0 (none) and more")
        for name in ("resample_images", "resampler_depth"):
            if getattr(self, name) and not self.latents:
                raise UserError(f"--model.{name} needs --model.latents of at least 1")
        if not 0 <= self.target_spread <= MAX_SPREAD:
            raise UserError(f"--model.target_spread is {self.target_spread}, allowed 0 to {MAX_SPREAD:g} bins")
        if not 0 <= self.drop_path < 1:
            raise UserError(f"--model.drop_path is {self.drop_path}, allowed 0 to below 1")

    def build(self, vocabulary: Vocabulary, context: int, end_id: int) -> GatitoConfig:
        """The transformers configuration of this shape."""
        return GatitoConfig(
            **{theirs: getattr(self, ours) for ours, theirs in NAMES.items()},
            # At width 128 the usual 0.02 drowns what a token is in what the blocks add: docs/decisions.md.
            initializer_range=self.width**-0.5,
            context=context,
            eos_token_id=end_id,
            **vocabulary.to_json(),
        )

    @classmethod
    def of(cls, config: GatitoConfig) -> "ModelConfig":
        """The shape of a transformers configuration."""
        return cls(**{ours: getattr(config, theirs) for ours, theirs in NAMES.items()})


NAMES = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "feed_forward": "intermediate_size",
    **{
        name: name
        for name in (
            "head_dim", "patch_channels", "rotary", "latents", "resampler_depth", "resample_images", "action_layers",
            "drop_path", "loss_over", "target_spread",
        )
    },
}  # fmt: skip
"""Names of `ModelConfig`, and those of the transformers configuration for the same."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The optimisation."""

    steps: int = 1000
    """Optimizer steps."""
    minutes: float | None = None
    """Ends the run, schedule included, at this time where the steps would take longer."""
    batch: int = 16
    """Rows per optimizer step, over all processes and accumulation steps."""
    context: int = 256
    """Positions of the trunk per row (L)."""
    accumulation: int = 1
    """Micro-batches per optimizer step."""
    lr: float = 1e-3
    """Peak learning rate."""
    first_lr: float = 0.0
    """Learning rate at which the warm-up sets out."""
    warmup: int = 100
    """Steps of linear warm-up."""
    final_lr: float = 0.1
    """Learning rate at the end of the cosine, as a share of the peak."""
    weight_decay: float = 0.1
    """Of matrices; not of embeddings, norms and biases."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` turns the matrices by Muon (orthogonal steps), all else by AdamW: token tables, norms, biases and
    kernels of convolutions; not under fsdp."""
    average: float = 0.0
    """Share of the running average of the weights that a step keeps, such as 0.99; the average is what is saved to be
    used, and evaluated. 0 uses the last weights."""
    beta1: float = 0.9
    """AdamW."""
    beta2: float = 0.95
    """AdamW."""
    clip: float = 1.0
    """Largest gradient norm."""
    prompt_share: float = 0.25
    """Share of the control sequences that begin with a prompt."""
    predict_observations: bool = False
    """Whether observation tokens are targets too (the paper leaves it to future work); on a flat trunk only."""
    precision: Literal["no", "bf16"] = "no"
    """Mixed precision; bf16 pays on GPUs, not on most CPUs."""
    sharding: Literal["none", "fsdp"] = "none"
    """`none` keeps the whole model on every GPU (DDP); `fsdp` shards it by block, with gradients and moments."""
    activation_checkpointing: bool = False
    """Whether a block's activations are computed again in the backward pass instead of being kept."""
    compile: bool = False
    """Whether blocks run through `torch.compile`."""
    seed: int = 0
    """Of weights, stream and stochastic depth."""
    workers: int = 0
    """Processes that prepare batches; 0 prepares them in the loop."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl."""
    save_every: int = 1000
    """Steps between checkpoints; the last step always saves."""
    keep: int = 2
    """Newest checkpoints that are kept."""
    keep_every: int = 0
    """Checkpoints at multiples of so many steps are kept for good; 0 keeps none."""
    resume: Literal["never", "auto"] = "never"
    """`auto` continues from the newest complete checkpoint in --out, or starts where there is none."""
    resume_step: int | None = None
    """Continues from the checkpoint of this step instead of the newest one."""
    accept_changes: bool = False
    """Whether a run may be continued with another seed, batch or data than it had."""
    evaluate_every: int = 0
    """Steps between evaluations by rollouts; 0 evaluates never."""
    evaluate_tasks: str = ""
    """Task ids, groups and patterns to evaluate, separated by commas; by default all that are trained on."""
    evaluate_episodes: int = 10
    """Seeded episodes per task and evaluation."""
    evaluate_prompt: Prompt = "none"
    """Which part of a demonstration of the expert these episodes begin with."""
    evaluate_limit_s: float = 1800.0
    """Seconds after which what is left of an evaluation is given up and counted as failed."""
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Where Accelerate also sends the metrics."""

    def __post_init__(self) -> None:
        counted = (
            "steps",
            "batch",
            "context",
            "accumulation",
            "log_every",
            "save_every",
            "keep",
            "evaluate_episodes",
        )
        for name in counted:
            if getattr(self, name) < 1:
                raise UserError(f"--train.{name} is {getattr(self, name)}, allowed 1 and more")
        if self.batch % self.accumulation:
            raise UserError(f"--train.batch {self.batch} does not divide by --train.accumulation {self.accumulation}")
        if not 0 <= self.prompt_share <= 1:
            raise UserError(f"--train.prompt_share is {self.prompt_share}, allowed 0 to 1")
        if self.evaluate_limit_s > MAX_EVALUATION_S:
            raise UserError(
                f"--train.evaluate_limit_s is {self.evaluate_limit_s:g}, allowed up to {MAX_EVALUATION_S}: other "
                "processes wait no longer"
            )
        if self.evaluate_tasks and not self.evaluate_every:
            raise UserError("--train.evaluate_tasks is given, but --train.evaluate_every is 0: nothing is evaluated")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise UserError(f"--train.minutes is {self.minutes}, allowed > 0 and finite; leave it out for no limit")
        for name in (
            "workers",
            "warmup",
            "seed",
            "weight_decay",
            "first_lr",
            "final_lr",
            "keep_every",
            "evaluate_every",
        ):
            if not getattr(self, name) >= 0:
                raise UserError(f"--train.{name} is {getattr(self, name)}, allowed 0 and more")
        if not 0 <= self.average < 1:
            raise UserError(f"--train.average is {self.average}, allowed 0 (none) to below 1")
        for name, wanted in (("optimizer", self.optimizer == "muon"), ("average", self.average > 0)):
            if wanted and self.sharding != "none":
                raise UserError(
                    f"--train.{name} {getattr(self, name)} needs whole weights; use --train.sharding none"
                )
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise UserError(f"--train.beta1 and beta2 are {self.beta1} and {self.beta2}, allowed 0 to below 1")
        for name in ("lr", "clip", "evaluate_limit_s"):
            if not getattr(self, name) > 0:
                raise UserError(f"--train.{name} is {getattr(self, name)}, allowed > 0")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Adapters of low rank beside frozen weights (Hu et al. 2021), for runs with --init."""

    rank: int = 0
    """Of the adapters; 0 trains all weights."""
    alpha: int = 16
    """The adapters count alpha / rank."""
    modules: list[str] = field(default_factory=lambda: ["qkv", "out", "gate", "value"])
    """Names of the linear layers that are adapted."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise UserError(f"--lora.rank is {self.rank}, allowed 0 (none) and more")
        if not self.alpha > 0:
            raise UserError(f"--lora.alpha is {self.alpha}, allowed > 0")
        if not self.modules:
            raise UserError("--lora.modules names none; give names of linear layers, such as qkv")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """Shape of the network."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The optimisation."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters."""

    def __post_init__(self) -> None:
        if self.lora.rank and self.train.sharding != "none":
            raise UserError("--lora.rank beside --train.sharding: adapters are not sharded; leave one out")
        if self.lora.rank and self.train.average:
            raise UserError("--lora.rank beside --train.average: adapters are not averaged; leave one out")
        for name in ("latents", "action_layers"):
            if self.train.predict_observations and getattr(self.model, name):
                raise UserError(
                    "--train.predict_observations needs a position for every token, and --model."
                    f"{name} is {getattr(self.model, name)}; use --model.latents 0 --model.action_layers 0"
                )
