"""What a checkpoint says about its data: the processor's layouts, and the model card."""

from gatito.data.store import Store
from gatito.model import GatitoProcessor
from gatito.tokenizers import Layout
from gatito.tokenizers.trunk import Trunk
from gatito.train.configs import Recipe


def processor_of(store: Store, trunk: Trunk) -> GatitoProcessor:
    """The processor of a checkpoint trained on a store; raises `UserError` for actions that are too large."""
    layouts = {task: Layout.from_json(values, store.text) for task, values in store.layouts().items()}
    for task, layout in layouts.items():
        trunk.check_action(layout.num_action_tokens, f"task {task!r}")
    return GatitoProcessor(trunk, store.text, layouts)


def model_card(recipe: Recipe, store: Store, step: int) -> str:
    """The README.md of a checkpoint, in the hub's format."""
    rows = "\n".join(f"| {d.name} | {d.kind} | {d.num_episodes} | {d.num_timesteps} | {d.weight:g} |" for d in store)
    return f"""---
library_name: transformers
tags: [gatito, reinforcement-learning, robotics, image-to-text, text-generation]
---
# gatito, {recipe.model.layers} layers of width {recipe.model.width}

One transformer with one set of weights, trained for {step} steps of {recipe.train.batch} x {recipe.train.context}
positions of the trunk.

    import gatito
    agent = gatito.load_agent("PATH_OR_REPOSITORY")
    agent.reset(task="{next(iter(store.layouts()), "TASK")}")
    action = agent.act(observation)

| dataset | kind | episodes | timesteps | weight |
|---|---|---|---|---|
{rows}
"""
