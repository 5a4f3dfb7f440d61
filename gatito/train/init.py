"""Fine-tuning: a run that begins with the weights of a checkpoint.

Whatever the new data's spaces are, nothing is added to the network: observations and actions are tokens of the same
vocabulary. The new checkpoint knows the old tasks and the new ones.
"""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gatito.data.store import Store
from gatito.errors import UserError
from gatito.eval.agent import load_checkpoint, weights_sha256
from gatito.model import GatitoConfig, GatitoForCausalLM, GatitoProcessor
from gatito.train.configs import ModelConfig, Recipe

OF_TRAINING = ("drop_path", "target_spread")
"""Settings of a recipe's model that change no weight."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Beginning:
    """What a run begins with."""

    model: GatitoForCausalLM
    """Its weights."""
    processor: GatitoProcessor
    """The tasks that it knows."""

    def shape(self, recipe: Recipe) -> GatitoConfig:
        """The checkpoint's shape, in the window of a recipe and with what a recipe says of training alone."""
        shape = copy.deepcopy(self.model.config)
        shape.context = recipe.train.context
        for name in OF_TRAINING:
            setattr(shape, name, getattr(recipe.model, name))
        return shape

    def recipe(self, recipe: Recipe) -> Recipe:
        """A recipe with the checkpoint's shape, which is what is trained."""
        of_training = {name: getattr(recipe.model, name) for name in OF_TRAINING}
        return dataclasses.replace(
            recipe, model=dataclasses.replace(ModelConfig.of(self.model.config), **of_training)
        )


def begin_with(source: str | Path, store: Store) -> Beginning:
    """Load what a fine-tuning on a store begins with.

    Raises `UserError` where the checkpoint cannot be loaded, has other tokens than the store, or knows one of its
    tasks with another layout.
    """
    model, processor = load_checkpoint(source)
    if processor.vocabulary != store.vocabulary:
        raise UserError(
            f"--init {source} has the vocabulary {processor.vocabulary.to_json()}, the store "
            f"{store.vocabulary.to_json()}; build the store with the checkpoint's"
        )
    if processor.text.sha256 != store.text.sha256:
        raise UserError(
            f"--init {source} has the text model {processor.text.sha256[:12]}, the store "
            f"{store.text.sha256[:12]}; build the store with the checkpoint's tokenizer.model"
        )
    return Beginning(model=model, processor=processor)


def began_with(init: str | Path, model: GatitoForCausalLM | None, saved: Mapping[str, Any]) -> dict[str, Any]:
    """What the settings of a run say of its beginning: a name, and the hash of the weights behind it.

    `model` has the weights, None where they were not loaded; `saved` are the settings of the run that is continued.
    Weights that have another name by now, such as those of a folder that was moved, are the same by their hash; those
    of the same name may be gone. Raises `UserError` for weights that cannot be loaded.
    """
    if model is None and str(init) == saved.get("init"):
        return {name: saved.get(name) for name in ("init", "init.weights")}
    own = weights_sha256(load_checkpoint(init)[0] if model is None else model)
    name = saved["init"] if own == saved.get("init.weights") else str(init)
    return {"init": name, "init.weights": own}
