"""The model: a decoder-only transformer that is a native transformers model."""

from gatito.model.configuration import GatitoConfig
from gatito.model.modeling import GatitoForCausalLM, GatitoModel, GatitoOutput
from gatito.model.processor import GatitoProcessor

__all__ = ["GatitoConfig", "GatitoForCausalLM", "GatitoModel", "GatitoOutput", "GatitoProcessor"]
