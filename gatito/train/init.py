"""Fine-tuning: a run that begins with the weights of a checkpoint.

Whatever the new data's spaces are, nothing is added to the network: observations and actions are tokens of the same
vocabulary. The new checkpoint knows the old tasks and the new ones.
"""

import copy
import dataclasses
from pathlib import Path

from gatito.data.store import Store
from gatito.errors import UserError
from gatito.eval.agent import load_checkpoint
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
