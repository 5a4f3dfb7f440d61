"""The agent in a Gymnasium loop.

agent = gatito.load_agent("demo/run")
agent.reset(task="classic/cartpole")
observation, _ = env.reset(seed=0)
action = agent.act(observation)
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import PreTrainedConfig

from gatito.data.episode import Episode
from gatito.errors import UserError
from gatito.eval import TEMPERATURE
from gatito.eval.actor import Actor
from gatito.eval.decoding import Decoding
from gatito.eval.prompts import prompt_of_episodes
from gatito.eval.scores import Prompt
from gatito.eval.window import Memory
from gatito.model import GatitoConfig, GatitoForCausalLM, GatitoProcessor
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


def weights_sha256(model: GatitoForCausalLM) -> str:
    """Hash of all weights: another one is another agent, whatever its folder is called."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Agent:
    """One session: `reset` it for a task, then `act` on each observation."""

    def __init__(
        self,
        model: GatitoForCausalLM,
        processor: GatitoProcessor,
        *,
        temperature: float = TEMPERATURE,
        top_p: float = 1.0,
        memory: Memory = "refill",
        prompt_slides: bool = False,
    ) -> None:
        """Actions are sampled at `temperature` of the likeliest ids that make up `top_p`; 0 takes the likeliest."""
        self.model, self.processor = model, processor
        decoding = Decoding(temperature=temperature, top_p=top_p)
        self._actor = Actor(model, decoding=decoding, memory=memory, prompt_slides=prompt_slides)
        self._task: str | None = None

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> "Agent":
        """Load from a checkpoint folder, the folder of a run, or `hf:owner/name` on the hub; options are those of
        `Agent`."""
        return cls(*load_checkpoint(path), **options)

    @property
    def tasks(self) -> list[str]:
        """Tasks that the checkpoint knows."""
        return sorted(self.processor.layouts)

    def reset(
        self,
        task: str,
        demonstration: Episode | Sequence[Episode] | None = None,
        seed: int = 0,
        *,
        part: Prompt = "beginning",
    ) -> None:
        """Begin an episode of a task, with or without demonstrations of the same task as prompt.

        Of each demonstration `part` says what is shown: its beginning, its end (the goal), or a drawn stretch. Raises
        `UserError` for an unknown task, and for a demonstration of another one or with too long a timestep.
        """
        layout = self.processor.layout(task)
        shown = [demonstration] if isinstance(demonstration, Episode) else list(demonstration or [])
        config, rng = self.model.config, np.random.default_rng(seed)
        prompt = prompt_of_episodes(shown, task, layout, config.trunk, int(config.context), part, rng)
        self._actor.reset(0, layout, prompt, seed)
        self._task = task

    def go_on(self, seed: int = 0) -> None:
        """Begin another episode of the task at hand, within the same context."""
        if self._task is None:
            raise UserError("reset the agent for a task before it goes on: agent.reset(task=...)")
        self._actor.go_on(0, seed)

    def act(self, observation: Any) -> Any:
        """The action for an observation of the task's space."""
        if self._task is None:
            raise UserError("reset the agent for a task before it acts: agent.reset(task=...)")
        return self._actor.act({0: observation})[0]


def load_agent(path: str | Path, **options: Any) -> Agent:
    """Load an agent from a checkpoint folder, the folder of a run, or `hf:owner/name` on the hub; options are those
    of `Agent`, such as `temperature=0`."""
    return Agent.from_pretrained(path, **options)
