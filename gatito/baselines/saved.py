"""Cloned policies on disk, without pickle.

policy.json          task, layout, configuration, what was trained on, and the SHA-256 of the other files
model.safetensors    the network, and what was measured of demonstrations
tokenizer.model      the text model of the layout
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gatito.baselines.cloning import Clone, Senses, new_network
from gatito.baselines.config import CloneConfig
from gatito.baselines.network import Heads
from gatito.baselines.vectors import Numbers
from gatito.data.publish import published
from gatito.data.store import sha256_of
from gatito.errors import UserError, reason_of
from gatito.tokenizers import Layout, TextTokenizer

SCHEMA = 1
DESCRIPTION, WEIGHTS, TEXT = "policy.json", "model.safetensors", "tokenizer.model"
NETWORK = "network."
"""Before the names of the network's own tensors."""


def save_clone(policy: Clone, folder: Path) -> None:
    """Write a policy, whole or not at all; raises `UserError` where the folder exists."""
    with published(folder) as temporary:
        save_file(_tensors(policy), temporary / WEIGHTS)
        (temporary / TEXT).write_bytes(policy.layout.text.model)
        values = {
            "schema": SCHEMA,
            "task": policy.task,
            "layout": policy.layout.to_json(),
            "pieces": policy.senses.pieces,
            "config": asdict(policy.config),
            "data_sha256": policy.data_sha256,
            "steps": policy.steps,
            "flops": policy.flops,
            "loss": policy.loss,
            "sha256": {name: sha256_of(temporary / name) for name in (WEIGHTS, TEXT)},
        }
        (temporary / DESCRIPTION).write_text(json.dumps(values, indent=1, allow_nan=False))


def load_clone(folder: str | Path) -> Clone:
    """Read a policy; it acts as the one that was saved.

    Raises `UserError` that names the file where one is missing, damaged, of another schema, or not its own.
    """
    folder = Path(folder)
    try:
        values = json.loads((folder / DESCRIPTION).read_text())
        if values["schema"] != SCHEMA:
            raise UserError(f"{folder / DESCRIPTION}: schema {values['schema']}, expected {SCHEMA}; clone it again")
        for name in (WEIGHTS, TEXT):
            if sha256_of(folder / name) != values["sha256"][name]:
                raise UserError(f"{folder / name} does not match its SHA-256; use an undamaged copy")
        return _clone(values, load_file(folder / WEIGHTS), TextTokenizer.load(folder / TEXT))
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(reason_of(error).split())
        raise UserError(f"no cloned policy at {folder}: {reason}; clone it again") from None


def _tensors(policy: Clone) -> dict[str, Tensor]:
    numbers, heads = policy.senses.numbers, policy.heads
    measured = {
        "numbers.mean": numbers.mean,
        "numbers.scale": numbers.scale,
        "numbers.columns": numbers.columns,
        "heads.mean": heads.mean,
        "heads.deviation": heads.deviation,
    }
    arrays = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in measured.items()}
    return arrays | {f"{NETWORK}{name}": tensor for name, tensor in policy.network.state_dict().items()}


def _clone(values: dict[str, Any], tensors: dict[str, Tensor], text: TextTokenizer) -> Clone:
    layout, config = Layout.from_json(values["layout"], text), CloneConfig(**values["config"])
    numbers = Numbers(
        fields=layout.observations,
        mean=tensors["numbers.mean"].numpy(),
        scale=tensors["numbers.scale"].numpy(),
        columns=tensors["numbers.columns"].numpy(),
    )
    heads = Heads(
        fields=layout.actions, mean=tensors["heads.mean"].numpy(), deviation=tensors["heads.deviation"].numpy()
    )
    senses = Senses(layout=layout, numbers=numbers, pieces=tuple((i, piece) for i, piece in values["pieces"]))
    network = new_network(senses, heads, config)
    own = {name.removeprefix(NETWORK): tensor for name, tensor in tensors.items() if name.startswith(NETWORK)}
    network.load_state_dict(own)
    return Clone(
        task=values["task"],
        senses=senses,
        heads=heads,
        network=network.eval(),
        config=config,
        data_sha256=values["data_sha256"],
        steps=values["steps"],
        flops=values["flops"],
        loss=values["loss"],
    )
