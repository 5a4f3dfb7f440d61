"""The dataset card: README.md of a Minari dataset, in the hub's format."""

import json

from gatito.data.survey import FieldSurvey, Survey

HUB_LICENSES = {"MIT": "mit", "Apache-2.0": "apache-2.0", "GPL-2.0-only": "gpl-2.0", "Zlib": "zlib"}
"""SPDX expressions that the hub has an id for."""

SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10**7, "1M<n<10M"),
)
"""Numbers of timesteps below which a size category of the hub ends."""


def dataset_card(seen: Survey) -> str:
    """The card of a dataset, from a survey of it."""
    source, metadata = seen.source, seen.source.dataset.storage.metadata
    timesteps = sum(seen.lengths)
    license_id = HUB_LICENSES.get(source.license, "other")
    size = next((name for limit, name in SIZES if timesteps < limit), "n>10M")
    name = str(metadata.get("dataset_id", source.path.name))
    fields = "\n".join(_field_row(f) for f in seen.fields)
    agents = "\n".join(
        f"| {agent} | {len(returns)} | {returns.mean():.4g} | {returns.min():.4g} | {returns.max():.4g} |"
        f" {'' if seen.reference is None else format(seen.reference.score(returns).mean(), '.2f')} |"
        for agent, returns in seen.by_agent()
    )
    findings = "\n".join(f"- {finding.level}: {finding.text}" for finding in seen.findings) or "- nothing found"
    return f"""---
license: {license_id}
license_name: {_quoted(source.license or "unknown")}
pretty_name: {_quoted(name)}
tags: [gatito, minari, reinforcement-learning, robotics, imitation-learning]
task_categories: [reinforcement-learning, robotics]
size_categories: [{size}]
---
# {name}

{len(seen.returns)} episodes, {timesteps} timesteps of `{source.task}`: {metadata.get("description", "no words")}.
A [Minari](https://minari.farama.org) dataset in the Arrow format. As tokens of gatito: {seen.tokens} in all, at most
{seen.longest} in a timestep.

    import minari
    dataset = minari.load_dataset({_quoted(name)})     # with MINARI_DATASETS_PATH set to the folder it lies in

## Source agents

| agent | episodes | mean return | lowest | highest | mean score |
|---|---|---|---|---|---|
{agents}

{_what_is_recorded(seen)}

## Fields

| | field | kind | shape | values |
|---|---|---|---|---|
{fields}

## Checks

{findings}
"""


def _what_is_recorded(seen: Survey) -> str:
    """What scores mean, where there are any, and which actions were recorded."""
    noisy = "noisy" in seen.agents and not seen.source.executed
    actions = "those of the expert, also where a random one was executed" if noisy else "the executed ones"
    scores = "A score of 0 is the random policy, 1 the scripted expert. " if seen.reference is not None else ""
    return f"{scores}Recorded actions are {actions}."


def _field_row(f: FieldSurvey) -> str:
    name, kind = f.leaf.name or "(all)", f.leaf.kind
    if kind == "text":
        values = f"{len(f.texts)} distinct"
    elif not f.num_values:
        values = ""
    else:
        values = f"{float(f.low.min()):.4g} to {float(f.high.max()):.4g}"
    return f"| {f.role} | {name} | {kind} | {f.leaf.shape} | {values} |"


def _quoted(text: str) -> str:
    """A text from a file, as one string of YAML and of Python."""
    return json.dumps(text)
