"""Who acts, as named on the command line: `random`, `module:function`, or a checkpoint.

Only the user's own command line names code; no file does.
"""

import dataclasses
import importlib
import os
import re
import sys
from functools import cache, partial
from typing import Any

import gymnasium as gym

from gatito.data.recording import simulation
from gatito.data.tasks import Policy, TaskSpec, get_task, registry
from gatito.errors import UserError, nearest

MAX_STEPS = 1000
"""Timesteps after which an episode is cut of an environment that has no limit of its own."""


def any_environment(name: str) -> TaskSpec:
    """Return a known task, or that of a registered Gymnasium id; never one that names a module."""
    if name in registry():
        return get_task(name)
    if ":" in name:
        raise UserError(
            f"environment id {name!r} names a module; import it in a package of yours, and give the id alone"
        )
    if name not in gym.registry:
        raise UserError(nearest(name, [*registry(), *gym.registry], "task, environment id or folder"))
    steps = gym.spec(name).max_episode_steps or MAX_STEPS
    make = partial(gym.make, name, max_episode_steps=steps)
    with simulation(lambda: f"environment {name!r}"):
        make().close()
    return TaskSpec(id=name, make=make, expert=_no_expert, license="")


def _no_expert(env: gym.Env[Any, Any]) -> Policy:
    raise UserError(f"{env} has no scripted expert")


def played_by(spec: TaskSpec, policy: str) -> tuple[TaskSpec, str]:
    """Return the task with another policy in its expert's place, and the name under which its episodes are kept.

    Raises `UserError` for a module or function that is not there, and for a checkpoint that cannot be loaded or
    does not know the task.
    """
    if policy == "random":
        return spec, "random"
    name = re.sub(r"[^A-Za-z0-9_.-]+", ".", policy).strip(".")
    if re.fullmatch(r"[\w.]+:\w+", policy) and not os.path.exists(policy):
        _function(policy)
        return dataclasses.replace(spec, expert=partial(_by_function, policy)), name
    _agent(policy).processor.layout(spec.id)
    return dataclasses.replace(spec, expert=partial(_by_checkpoint, policy, spec.id)), name


@cache
def _function(policy: str) -> Any:
    """The function `module:function`, of the working directory or an installed package."""
    module, _, function = policy.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever a module of the user's raises as it is imported
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"--policy {policy}: {reason}") from error


def _by_function(policy: str, env: gym.Env[Any, Any]) -> Policy:
    acts = _function(policy)(env)
    if not callable(acts):
        raise UserError(
            f"--policy {policy} returned {type(acts).__name__} for an environment; it must return a function from an "
            "observation to an action"
        )
    return acts


@cache
def _agent(checkpoint: str) -> Any:
    from gatito.eval.agent import load_agent

    return load_agent(checkpoint)


def _by_checkpoint(checkpoint: str, task: str, env: gym.Env[Any, Any]) -> Policy:
    agent = _agent(checkpoint)
    agent.reset(task, seed=int(env.action_space.np_random.integers(1 << 31)))
    return agent.act
