"""The tables of `gatito info`."""

from gatito.train.configs import TrainConfig
from gatito.train.info import ASSUMED_ACTION, ASSUMED_VALUES, Cost, Reach
from gatito.train.memory import Memory, in_bytes, rows_per_gpu
from gatito.train.parameters import Parameters

ASSUMED = (
    f"assumed, as there is no store: timesteps of {ASSUMED_VALUES} numbers, a separator and {ASSUMED_ACTION} "
    "action tokens"
)
SHOWN = 0.0005
"""Smallest share that is printed: it would read 0.0%."""
UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21, "Y": 1e24}


def print_parameters(parameters: Parameters) -> None:
    """Parts, their sum, and what of it is outside of lookup tables."""
    print("\nparameters")
    for part, count in parameters.by_part().items():
        if count:
            print(f"  {part:18} {count:>15,}")
    print(f"  {'total':18} {parameters.total:>15,}")
    print(f"  {'non-embedding':18} {parameters.non_embedding:>15,}   without the lookup tables")


def print_reach(reach: list[Reach]) -> None:
    """By task or dataset."""
    print(f"\n{'task':44} {'tokens':>7} {'positions':>9}   a context holds")
    for row in reach:
        print(f"{row.name:44} {row.tokens:>7.1f} {row.positions:>9.1f}   {row.held} {row.unit}")


def print_flops(cost: Cost, train: TrainConfig | None) -> None:
    """By token, timestep and, of a recipe, by step and run; then the shares of the parts."""
    print(f"\n{'FLOPs':20} {'forward':>9} {'training':>9}")
    lines = {"per token": (cost.flops.forward / cost.tokens, cost.flops.training / cost.tokens)}
    if cost.timestep:
        lines["per timestep"] = (cost.timestep.forward, cost.timestep.training)
    if train:
        step = (cost.flops.forward * train.batch, cost.flops.training * train.batch)
        lines["per step"] = step
        lines[f"{train.steps:,} steps"] = (step[0] * train.steps, step[1] * train.steps)
    for name, (forward, training) in lines.items():
        print(f"  {name:18} {scaled(forward):>9} {scaled(training):>9}")
    forward = cost.flops.forward
    shares = [f"{part} {n / forward:.1%}" for part, n in cost.flops.by_part().items() if n >= SHOWN * forward]
    print(f"  of which {', '.join(shares)}")


def print_memory(memory: Memory, train: TrainConfig, gpus: int) -> None:
    """By part, of a recipe on so many GPUs."""
    name = "one GPU" if gpus == 1 else f"each of {gpus} GPUs"
    kept = "computed again" if train.activation_checkpointing else "kept"
    print(
        f"\nmemory on {name}: {rows_per_gpu(train, gpus)} rows at a time (batch {train.batch}, accumulation "
        f"{train.accumulation}), precision {train.precision}, sharding {train.sharding}, activations {kept}"
    )
    for part, count in memory.by_part().items():
        if count:
            print(f"  {part:18} {in_bytes(count):>10}")
    print(f"  {'total':18} {in_bytes(memory.total):>10}   about; without CUDA's own, less with --train.compile")


def scaled(number: float) -> str:
    """Three digits and the letter of a power of 1000."""
    letter, size = next((k, v) for k, v in reversed(UNITS.items()) if number >= v or v == 1.0)
    return f"{number / size:.3g} {letter}".rstrip()
