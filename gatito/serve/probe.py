"""Which recipes keep up with a control rate on this machine.

Random weights decide as fast as trained ones. A timestep is a robot's: a camera of 96 x 96 pixels, 8 joints and 7
values to act by, in one session; the context fills up and is refilled, as in a long episode. A recipe holds the rate
where 99 % of its steps are done in time.
"""

from dataclasses import dataclass
from time import perf_counter

import numpy as np
import psutil
import torch
from gymnasium import spaces
from tqdm import tqdm

from gatito.eval.actor import Actor
from gatito.model import GatitoForCausalLM
from gatito.model.int8 import quantize_int8
from gatito.model.packed import pack_linears
from gatito.recipes import load_recipe, recipe_names
from gatito.tokenizers import Layout, TextTokenizer, Vocabulary
from gatito.train.configs import Recipe

DEFAULT_HZ = 20.0
STEPS, WARM_UP, LIMIT_S = 400, 5, 20.0
"""Measured are so many steps, or as many as the time allows, after some of warm-up."""
HOPELESS = 4.0
"""Times the period from which on larger recipes are not tried."""


@dataclass(frozen=True, kw_only=True)
class Probed:
    """How fast a recipe acts."""

    name: str
    parameters: int
    seconds: np.ndarray
    """(N,) of each step; none where it does not fit into memory."""

    def holds(self, hz: float) -> bool:
        """Whether 99 % of the steps are done in time."""
        return bool(len(self.seconds)) and float(np.quantile(self.seconds, 0.99)) <= 1 / hz


def probe_recipes(hz: float, *, threads: int = 1, int8: bool = False) -> None:
    """Print a table of the recipes in the package, and the largest that holds the rate."""
    torch.set_num_threads(threads)
    recipes = sorted(((name, load_recipe(name)) for name in recipe_names()), key=lambda pair: _size(pair[1]))
    found: list[Probed] = []
    for name, recipe in tqdm(recipes, desc="probe", unit="recipe", leave=False):
        found.append(probe(name, recipe, int8=int8))
        if not len(found[-1].seconds) or float(np.median(found[-1].seconds)) > HOPELESS / hz:
            break
    print(f"{threads} thread{'s' * (threads > 1)}{', int8' if int8 else ''}, one session, {1000 / hz:.0f} ms a step")
    print("| recipe | parameters | p50 | p99 | worst | holds |\n|---|---|---|---|---|---|")
    for probed in found:
        print(_row(probed, hz))
    left = [name for name, _ in recipes[len(found) :]]
    if left:
        print(f"not tried, since they are larger: {', '.join(left)}")
    holding = [probed.name for probed in found if probed.holds(hz)]
    print(f"the largest that holds {hz:g} Hz here: {holding[-1] if holding else 'none'}")


def probe(name: str, recipe: Recipe, *, int8: bool = False) -> Probed:
    """Step one session of a model of random weights."""
    text = TextTokenizer.load()
    vocabulary = Vocabulary(text_size=text.size)
    config = recipe.model.build(vocabulary, recipe.train.context, end_id=text.end)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in GatitoForCausalLM(config).parameters())
    if 3 * 4 * parameters > psutil.virtual_memory().available:  # the weights, packed, and while they are made
        return Probed(name=name, parameters=parameters, seconds=np.zeros(0))
    model = GatitoForCausalLM(config).eval().to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    actor = Actor(quantize_int8(model) if int8 else pack_linears(model), cache_dtype=torch.bfloat16 if int8 else None)
    space = spaces.Dict(camera=spaces.Box(0, 255, (96, 96, 3), np.uint8), joints=spaces.Box(-np.pi, np.pi, (8,)))
    actor.reset(0, Layout.from_spaces(space, spaces.Box(-1, 1, (7,)), vocabulary=vocabulary, text=text))
    space.seed(0)
    seconds: list[float] = []
    while len(seconds) < STEPS + WARM_UP and sum(seconds) < LIMIT_S:
        observation = space.sample()
        began = perf_counter()
        actor.act({0: observation})
        seconds.append(perf_counter() - began)
    return Probed(name=name, parameters=parameters, seconds=np.array(seconds[WARM_UP:] or seconds))


def _size(recipe: Recipe) -> int:
    return recipe.model.layers * recipe.model.width * (4 * recipe.model.width + 3 * recipe.model.feed_forward)


def _row(probed: Probed, hz: float) -> str:
    size = f"{probed.parameters / 1e6:.1f} M"
    if not len(probed.seconds):
        return f"| {probed.name} | {size} | does not fit into memory | | | no |"
    times = [np.median(probed.seconds), np.quantile(probed.seconds, 0.99), probed.seconds.max()]
    shown = " | ".join(f"{1000 * t:.1f} ms" for t in times)
    return f"| {probed.name} | {size} | {shown} | {'yes' if probed.holds(hz) else 'no'} |"
