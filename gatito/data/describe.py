"""What a store holds, as a table: by dataset, or by domain where they are many."""

from collections.abc import Mapping, Sequence
from itertools import groupby

from gatito.data.store import Store, TokenDataset
from gatito.data.tasks import domain_of

MANY = 20
"""Datasets from which on a training prints one row per domain."""


def by_domain(datasets: Sequence[TokenDataset]) -> dict[str, list[TokenDataset]]:
    """Domains with their datasets."""

    def domain(dataset: TokenDataset) -> str:
        return domain_of(dataset.metadata["task"])

    return {name: list(found) for name, found in groupby(sorted(datasets, key=domain), domain)}


def store_table(store: Store, groups: Mapping[str, Sequence[TokenDataset]], epochs: Mapping[str, float]) -> str:
    """Episodes, timesteps, tokens by modality, share of targets and of the rows of a batch, by named group.

    `epochs` adds how often a training goes over a dataset, by name.
    """
    modalities = list(store.vocabulary.modality_ranges)
    head = f"{'dataset':44} {'episodes':>9} {'timesteps':>10} {'tokens':>11} {'targets':>8}"
    head += "".join(f" {name:>10}" for name in modalities) + f" {'share':>8}" + (f" {'epochs':>8}" if epochs else "")
    return "\n".join([head, *(_row(name, datasets, modalities, epochs) for name, datasets in groups.items())])


def _row(name: str, datasets: Sequence[TokenDataset], modalities: Sequence[str], epochs: Mapping[str, float]) -> str:
    episodes, timesteps, tokens, targets = (
        sum(d.metadata[key] for d in datasets) for key in ("episodes", "timesteps", "tokens", "targets")
    )
    row = f"{name[:44]:44} {episodes:>9} {timesteps:>10} {tokens:>11} {targets / tokens:>8.1%}"
    row += "".join(f" {sum(d.metadata['modalities'][m] for d in datasets) / tokens:>10.1%}" for m in modalities)
    weight = sum(d.weight for d in datasets)
    row += f" {weight:>8.2%}" if weight else " held out"
    if epochs:
        found = [epochs[d.name] for d in datasets]
        row += f" {min(found):>8.3g}" + (f" to {max(found):.3g}" if max(found) > min(found) else "")
    return row
