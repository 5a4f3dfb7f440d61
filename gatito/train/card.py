"""What a checkpoint says about its data: the processor's layouts, and the model card."""

from gatito.data.store import Store, layouts_of
from gatito.errors import UserError
from gatito.model import GatitoProcessor
from gatito.tokenizers import Layout
from gatito.tokenizers.trunk import Trunk
from gatito.train.configs import Recipe


def processor_of(store: Store, trunk: Trunk, before: GatitoProcessor | None = None) -> GatitoProcessor:
    """The processor of a checkpoint trained on a store, after what `before` knows.

    Raises `UserError` for actions that are too large, and for a task that is known with another layout.
    """
    layouts = {task: Layout.from_json(values, store.text) for task, values in store.layouts().items()}
    known = {} if before is None else before.layouts
    for task in layouts.keys() & known.keys():
        if layouts[task].sha256 != known[task].sha256:
            raise UserError(
                f"task {task!r} has the layout {layouts[task].sha256[:12]} in the store and "
                f"{known[task].sha256[:12]} in the checkpoint of --init; give the new one another name"
            )
    layouts = known | layouts
    trained_on = layouts_of(store.datasets).keys() | known.keys() - set(before.held_out if before else ())
    for task, layout in layouts.items():
        trunk.check_action(layout.num_action_tokens, f"task {task!r}")
    return GatitoProcessor(trunk, store.text, layouts, sorted(layouts.keys() - trained_on))


def model_card(recipe: Recipe, store: Store, step: int, init: str | None = None) -> str:
    """The README.md of a checkpoint, in the hub's format; `init` is what the run began with."""
    began = "" if init is None else f"\nIt began with the weights of `{init}`, whose tasks it knows too.\n"
    rows = "\n".join(f"| {d.name} | {d.kind} | {d.num_episodes} | {d.num_timesteps} | {d.weight:g} |" for d in store)
    return f"""---
library_name: transformers
tags: [gatito, reinforcement-learning, robotics, image-to-text, text-generation]
---
# gatito, {recipe.model.layers} layers of width {recipe.model.width}

One transformer with one set of weights, trained for {step} steps of {recipe.train.batch} x {recipe.train.context}
positions of the trunk.
{began}
    import gatito
    agent = gatito.load_agent("PATH_OR_REPOSITORY")
    agent.reset(task="{next(iter(store.layouts()), "TASK")}")
    action = agent.act(observation)

| dataset | kind | episodes | timesteps | weight |
|---|---|---|---|---|
{rows}
"""
