"""The agent in a Gymnasium loop.

agent = gatito.load_agent("demo/run")
agent.reset(task="classic/cartpole")
observation, _ = env.reset(seed=0)
action = agent.act(observation)
"""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import PreTrainedConfig

from gatito.data.checks import checked_tokens
from gatito.data.episode import Episode
from gatito.data.sampler import prompt_budget, prompt_timesteps
from gatito.errors import UserError
from gatito.eval import TEMPERATURE
from gatito.eval.actor import Actor
from gatito.eval.decoding import Decoding
from gatito.model import GatitoConfig, GatitoForCausalLM, GatitoProcessor
from gatito.tokenizers import Layout, TokenSequence
from gatito.tokenizers.trunk import Trunk
from gatito.train.checkpoint import resolve_checkpoint


def load_checkpoint(path: str | Path) -> tuple[GatitoForCausalLM, GatitoProcessor]:
    """Load model and processor from a checkpoint folder, the folder of a run, or `hf:owner/name` on the hub.

    The model is put on the accelerator where there is one. Raises `UserError` where it is damaged, of another kind
    of model, or lacks weights; pickled weights are not read.
    """
    try:
        source = _downloaded(str(path)[3:]) if str(path).startswith("hf:") else str(resolve_checkpoint(path))
        processor = GatitoProcessor.from_pretrained(source)
        kind = PreTrainedConfig.get_config_dict(source)[0].get("model_type")
        if kind != GatitoConfig.model_type:
            raise UserError(f"checkpoint {path} is a model of type {kind!r}, expected {GatitoConfig.model_type!r}")
        loaded: Any = GatitoForCausalLM.from_pretrained(source, use_safetensors=True, output_loading_info=True)
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise UserError(f"cannot load checkpoint {path}: {type(error).__name__}: {reason}") from None
    model, loading = loaded
    absent = sorted(loading["missing_keys"]) + sorted(loading["unexpected_keys"])
    if absent:
        raise UserError(f"checkpoint {path} does not hold the weights of its configuration: {absent[0]} and others")
    if processor.trunk != model.config.trunk:
        raise UserError(
            f"checkpoint {path}: its config.json and processor_config.json differ in the positions of the trunk, "
            f"{model.config.trunk.to_json()} and {processor.trunk.to_json()}; use an undamaged copy"
        )
    return model.eval().to(torch.accelerator.current_accelerator(check_available=True) or "cpu"), processor


def _downloaded(repository: str) -> str:
    """The folder of a checkpoint on the hub, without what only resuming needs."""
    return snapshot_download(repository, ignore_patterns=["training/*"])


def prompt_from(demonstration: Episode, layout: Layout, trunk: Trunk, context: int) -> TokenSequence | None:
    """The first whole timesteps of a demonstration that fit half the context (Reed et al. 2022, section 2.4).

    None where not even the first fits.
    """
    where = f"demonstration {demonstration.id} of {demonstration.task}"
    sequence, _ = checked_tokens(layout, demonstration, where=where)
    last = prompt_timesteps(trunk.timestep_starts(sequence), 0, prompt_budget(context))
    return sequence.timesteps(0, last, layout.vocabulary.patch) if last else None


class Agent:
    """One session: `reset` it for a task, then `act` on each observation."""

    def __init__(
        self, model: GatitoForCausalLM, processor: GatitoProcessor, *, temperature: float = TEMPERATURE
    ) -> None:
        """Actions are sampled at `temperature`; 0 takes the likeliest."""
        self.model, self.processor, self.decoding = model, processor, Decoding(temperature=temperature)
        self._actor: Actor | None = None

    @classmethod
    def from_pretrained(cls, path: str | Path, *, temperature: float = TEMPERATURE) -> "Agent":
        """Load from a checkpoint folder, the folder of a run, or `hf:owner/name` on the hub."""
        return cls(*load_checkpoint(path), temperature=temperature)

    @property
    def tasks(self) -> list[str]:
        """Tasks that the checkpoint knows."""
        return sorted(self.processor.layouts)

    def reset(self, task: str, demonstration: Episode | None = None, seed: int = 0) -> None:
        """Begin an episode of a task, with or without a demonstration of the same task as prompt.

        Raises `UserError` for an unknown task, and for a demonstration of another one or with too long a timestep.
        """
        layout = self.processor.layout(task)
        prompt = None
        if demonstration is not None:
            if demonstration.task != task:
                raise UserError(
                    f"a demonstration of {demonstration.task!r} cannot prompt {task!r}; give one of {task!r}"
                )
            config = self.model.config
            prompt = prompt_from(demonstration, layout, config.trunk, config.context)
            if prompt is None:
                raise UserError(
                    f"the first timestep of demonstration {demonstration.id} exceeds half of {config.context} "
                    "positions"
                )
        if self._actor is None:
            self._actor = Actor(self.model, decoding=self.decoding)
        self._actor.reset(0, layout, prompt, seed)

    def act(self, observation: Any) -> Any:
        """The action for an observation of the task's space."""
        if self._actor is None:
            raise UserError("reset the agent for a task before it acts: agent.reset(task=...)")
        return self._actor.act({0: observation})[0]


def load_agent(path: str | Path, *, temperature: float = TEMPERATURE) -> Agent:
    """Load an agent from a checkpoint folder, the folder of a run, or `hf:owner/name` on the hub."""
    return Agent.from_pretrained(path, temperature=temperature)
