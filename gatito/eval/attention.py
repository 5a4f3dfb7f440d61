"""What a model looks at when it acts: attention from the position that predicts an action over the context.

It is computed anew and without a cache, from the same modules that act: hooks read what reaches each layer's
attention, and the weights follow from its own queries and keys.
"""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gatito.data.explain import token_rows
from gatito.data.packing import pack
from gatito.data.tasks import EVALUATION_SEEDS, TaskSpec
from gatito.errors import UserError
from gatito.eval.actor import Actor
from gatito.eval.evaluate import CheckedTask
from gatito.eval.replay import render_frame, rendering, replayed, states
from gatito.model import GatitoForCausalLM
from gatito.model.modeling import EMBEDDED
from gatito.tokenizers import Layout, TokenSequence
from gatito.tokenizers.fields import value_at
from gatito.tokenizers.sequence import concatenate
from gatito.tokenizers.trunk import Trunk
from gatito.tokenizers.vocabulary import ACTION_POSITION


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionView:
    """What a model looked at when it chose the first action token of a timestep, the last of T in its context."""

    task: str
    """Task id."""
    seed: int
    """Of the episode."""
    step: int
    """Timestep of the episode, from 0."""
    prompt_timesteps: int
    """How many of the T timesteps are a demonstration's; they come first."""
    latents: int
    """Positions of an observation; 0 where each of its tokens has one."""
    decoded_actions: bool
    """Whether actions have no positions: the observation after them holds them."""
    weights: NDArray[np.float64]
    """(layers, T) attention on each timestep, the mean over heads; each layer's sum is 1."""
    action_weights: NDArray[np.float64]
    """(layers, T) the part of it on positions of actions: 0 where actions have none."""
    rows: list[dict[str, Any]]
    """Tokens of the timestep with the action that was chosen, see `token_rows`."""
    image: NDArray[np.uint8] | None
    """(H, W, C) what was observed, else what the camera saw; None where neither can be had."""


def causal_weights(q: Tensor, k: Tensor) -> Tensor:
    """Softmax weights (B, H, Q, L) of the last Q of L positions, each over itself and those before it.

    Times the values they are what `Attention` sums: `F.scaled_dot_product_attention` does not return them.
    """
    Q, L = q.shape[2], k.shape[2]
    scores = q.float() @ k.float().transpose(-1, -2) / q.shape[-1] ** 0.5
    seen = torch.ones((Q, L), dtype=torch.bool, device=q.device).tril(L - Q)
    return scores.masked_fill(~seen, -torch.inf).softmax(-1)


@torch.inference_mode()
def attention_weights(model: GatitoForCausalLM, past: Sequence[TokenSequence], observation: TokenSequence) -> Tensor:
    """Weights (layers, H, L) of the position that predicts the action on an observation: the last of L.

    `past` is what comes before: a prompt where there is one, and whole timesteps.
    """
    batch = pack([[concatenate([*past, observation])]], model.config.trunk).to(model.device)
    weights: list[Tensor] = []

    def read(attention: nn.Module, given: tuple[Any, ...]) -> None:
        x, _, angles, _ = given
        q, k, _ = attention.queries_keys_values(x, angles)  # type: ignore[operator]
        weights.append(causal_weights(q[:, :, -1:], k)[0, :, 0])

    with ExitStack() as hooks:
        for block in model.model.blocks:
            hooks.callback(block.attention.register_forward_pre_hook(read).remove)
        embedded = model.model.embed(**{name: t for name, t in batch.tensors().items() if name in EMBEDDED})
        model.model(embedded, batch.positions, None)
    return torch.stack(weights)


def by_timestep(
    weights: NDArray[np.float64], sequence: TokenSequence, trunk: Trunk
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum weights (layers, L) of a sequence's positions by timestep: in all and on actions, both (layers, T)."""
    starts = trunk.timestep_starts(sequence)[:-1]
    costs = trunk.costs(sequence.ids, sequence.local_positions)
    of_action = np.repeat(sequence.local_positions == ACTION_POSITION, costs)  # (L,)
    return np.add.reduceat(weights, starts, axis=1), np.add.reduceat(weights * of_action, starts, axis=1)


def view_attention(
    actor: Actor,
    task: CheckedTask,
    step: int,
    seed: int = EVALUATION_SEEDS,
    prompt: TokenSequence | None = None,
) -> AttentionView:
    """Play a seeded episode in the first session up to a timestep and see what the model looks at there.

    Raises `UserError` where the episode ends before.
    """
    spec, layout = task.spec, task.layout
    actor.reset(0, layout, prompt, seed)
    actions, observation = _play_to(step, spec, actor, seed)
    actor.act({0: observation})
    image = _image(spec, layout, actions, observation, seed)
    return last_attention(actor, 0, spec.id, seed, step, prompt, image)


def last_attention(
    actor: Actor,
    session: int,
    task: str,
    seed: int,
    step: int,
    prompt: TokenSequence | None,
    image: NDArray[np.uint8] | None,
) -> AttentionView:
    """What the model looked at when it decided last in a session, which began with `prompt`.

    Episode, timestep and image are those that the view states. Raises `UserError` where nothing has been decided.
    """
    own, trunk = actor.decided(session), actor.trunk
    layout = own.layout
    *past, timestep = own.window.sequences()
    seen = timestep.head(len(timestep) - layout.num_action_tokens, layout.vocabulary.patch)
    weights = attention_weights(actor.model, past, seen).mean(1).double().cpu().numpy()
    summed, on_actions = by_timestep(weights, concatenate([*past, seen]), trunk)
    return AttentionView(
        task=task,
        seed=seed,
        step=step,
        prompt_timesteps=_of_prompt(prompt, sum(part.num_timesteps for part in past), step, actor.prompt_slides),
        latents=trunk.latents,
        decoded_actions=trunk.decoded_actions,
        weights=summed,
        action_weights=on_actions,
        rows=token_rows(timestep, layout.vocabulary, layout.text, layout),
        image=image,
    )


def _of_prompt(prompt: TokenSequence | None, timesteps: int, step: int, slides: bool) -> int:
    """How many of the past timesteps of a window are the prompt's."""
    if prompt is None:
        return 0
    return max(0, timesteps - step) if slides else prompt.num_timesteps


def _play_to(step: int, spec: TaskSpec, actor: Actor, seed: int) -> tuple[list[Any], Any]:
    """Play up to a timestep: the actions before it and what is observed there."""
    actions: list[Any] = []
    with closing(spec.make()) as env:
        for state in states(env, lambda observation: actor.act({0: observation})[0], seed):
            actions.append(state.action)
            if len(actions) > step >= 0:
                break
    if state.done:
        raise UserError(f"step {step} of task {spec.id!r}, seed {seed}: allowed 0 to {len(actions) - 2}")
    return actions[1:], state.observation  # none leads to the beginning


def _image(
    spec: TaskSpec, layout: Layout, actions: Sequence[Any], observation: Any, seed: int
) -> NDArray[np.uint8] | None:
    """The first image that was observed; where there is none, a frame."""
    for field in layout.observations:
        if field.kind == "image":
            return np.asarray(value_at(observation, field.path), np.uint8)
    try:
        with rendering(spec) as env:
            for _ in replayed(env, actions, seed):
                pass
            return render_frame(env)
    except Exception:  # whatever a broken driver raises: an image must not cost the view
        return None
