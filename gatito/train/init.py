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


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Beginning:
    """What a run begins with."""

    model: GatitoForCausalLM
    """Its weights."""
    processor: GatitoProcessor
    """The tasks that it knows."""

    def shape(self, recipe: Recipe) -> GatitoConfig:
        """The checkpoint's shape, in the window and with the stochastic depth of a recipe."""
        shape = copy.deepcopy(self.model.config)
        shape.context, shape.drop_path = recipe.train.context, recipe.model.drop_path
        return shape

    def recipe(self, recipe: Recipe) -> Recipe:
        """A recipe with the checkpoint's shape, which is what is trained."""
        shape = ModelConfig.of(self.model.config)
        return dataclasses.replace(recipe, model=dataclasses.replace(shape, drop_path=recipe.model.drop_path))


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
