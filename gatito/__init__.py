"""gatito: one transformer with one set of weights for games, robots, images and text."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from gatito.errors import UserError
from gatito.eval.agent import Agent, load_agent
from gatito.model import GatitoConfig, GatitoForCausalLM, GatitoModel, GatitoProcessor, GatitoTokenizer

__version__ = "0.1.0"

AutoConfig.register("gatito", GatitoConfig)
AutoModel.register(GatitoConfig, GatitoModel)
AutoModelForCausalLM.register(GatitoConfig, GatitoForCausalLM)
AutoModelForImageTextToText.register(GatitoConfig, GatitoForCausalLM)
AutoProcessor.register(GatitoConfig, GatitoProcessor)
AutoTokenizer.register(GatitoConfig, GatitoTokenizer)

__all__ = ["Agent", "GatitoConfig", "GatitoForCausalLM", "GatitoModel", "GatitoProcessor", "UserError", "load_agent"]
