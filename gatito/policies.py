"""Who acts, as named on the command line: `random`, `module:function`, or a checkpoint.

Only the user's own command line names code; no file does.
"""

import dataclasses
import importlib
import os
import random
import re
import sys
from collections.abc import Sequence
from functools import cache, partial
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np

from gatito.data.previous_reward import known_as
from gatito.data.recording import simulation
from gatito.data.tasks import Policy, TaskSpec, get_task, no_expert, registry
from gatito.errors import UserError, nearest

MAX_STEPS = 1000
"""Timesteps after which an episode is cut of an environment that has no limit of its own."""


def any_environment(name: str, modules: Sequence[str] = ()) -> TaskSpec:
    """Return a known task, or that of a Gymnasium id; never one that names a module.

    The id is registered by an installed package, or by one of `modules`, which every process that builds the
    environment imports: `modules_of` finds them on the user's command line.
    """
    if name in registry():
        return get_task(name)
    if ":" in name:
        raise UserError(
            f"environment id {name!r} names a module; import it in a package of yours, and give the id alone"
        )
    if name not in gym.registry:
        raise UserError(nearest(name, [*registry(), *gym.registry], "task, environment id or folder"))
    steps = gym.spec(name).max_episode_steps or MAX_STEPS
    make = partial(_make, name, steps, tuple(modules))
    with simulation(lambda: f"environment {name!r}"):
        make().close()
    return TaskSpec(id=name, make=make, expert=no_expert, license="")


def modules_of(env: str | None, policy: str | None) -> tuple[list[str], str | None]:
    """Import the modules that `--env [module:]id` and `--policy module:function` name, as typed by the user.

    Returns them with the id alone. Neither is ever to come from a file.
    """
    modules = []
    if policy is not None and import_policy(policy):  # its module may register the environment
        modules.append(policy.partition(":")[0])
    if env is not None and ":" in env:
        module, _, name = env.partition(":")
        _module(module, f"--env {env}")
        return [*modules, module], name
    return modules, env


def _make(name: str, steps: int, modules: Sequence[str], render_mode: str | None = None) -> gym.Env[Any, Any]:
    for module in modules:
        _module(module, f"environment {name!r}")
    return gym.make(name, max_episode_steps=steps, render_mode=render_mode)


def played_by(spec: TaskSpec, policy: str) -> tuple[TaskSpec, str]:
    """Return the task with another policy in its expert's place, and the name under which its episodes are kept.

    Raises `UserError` for a module or function that is not there, and for a checkpoint that cannot be loaded or
    does not know the task.
    """
    if policy == "random":
        return spec, "random"
    name = re.sub(r"[^A-Za-z0-9_]+", "-", policy).strip("-")  # what Minari allows
    if import_policy(policy):
        return dataclasses.replace(spec, expert=partial(_by_function, policy)), name
    agent = _agent(policy)
    spec = known_as(spec, agent.processor.layout(spec.id))
    from gatito.eval.agent import weights_sha256

    # Other weights are another agent, whatever the folder is called.
    name = f"checkpoint-{name}-{weights_sha256(agent.model)[:8]}"
    return dataclasses.replace(spec, expert=partial(_by_checkpoint, policy, spec.id)), name


def import_policy(policy: str) -> bool:
    """Import the module of a policy `module:function`; returns whether it is one."""
    is_function = re.fullmatch(r"[\w.]+:\w+", policy) is not None and not os.path.exists(policy)
    if is_function:
        _function(policy)
    return is_function


@cache
def _function(policy: str) -> Any:
    """The function `module:function`, of the working directory or an installed package."""
    module, _, function = policy.partition(":")
    found = _module(module, f"--policy {policy}")
    if not hasattr(found, function):
        raise UserError(f"--policy {policy}: module {module!r} has no {function!r}")
    return getattr(found, function)


def _module(name: str, where: str) -> ModuleType:
    """Import a module of the working directory or an installed package."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever a module of the user's raises as it is imported
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{where}: {reason}") from error


def _by_function(policy: str, env: gym.Env[Any, Any]) -> Policy:
    seed = int(env.action_space.np_random.integers(1 << 31))
    np.random.seed(seed)  # what a policy draws from the global generators follows from the seed of the episode too
    random.seed(seed)
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
