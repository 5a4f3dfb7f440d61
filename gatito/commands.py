"""What the verbs print."""

import json
from pathlib import Path
from typing import Literal

from gatito.data.build import open_layout
from gatito.data.checks import checked_tokens
from gatito.data.documents import DOCUMENT_SCHEMES, document_at
from gatito.data.explain import token_rows
from gatito.data.minari_episodes import episode_from_buffer, is_dataset, open_minari
from gatito.data.recording import collect_episode
from gatito.data.store import Store, TokenDataset, is_store, open_store
from gatito.data.tasks import ExpertFailed, get_task, groups, matching, references, registry
from gatito.errors import UserError, nearest
from gatito.eval.agent import load_checkpoint
from gatito.eval.references import measure_references
from gatito.policies import any_environment
from gatito.recipes import recipe_names
from gatito.tokenizers import Layout, TextTokenizer, TokenSequence, Vocabulary
from gatito.train.card import processor_of
from gatito.train.configs import Recipe, TrainConfig
from gatito.train.info import assumed_row, cost_of, reach_of_data, reach_of_layouts, sampled_rows
from gatito.train.memory import rows_per_gpu, training_memory
from gatito.train.parameters import count_parameters
from gatito.train.tables import ASSUMED, print_flops, print_memory, print_parameters, print_reach


def list_tasks(names: list[str], as_json: bool) -> None:
    """Print known tasks with domain, extra, licence and reference returns."""
    known = references()
    rows = []
    for task in sorted(matching(names)):
        spec, measured = registry()[task], known.get(task)
        rows.append(
            {
                "id": task,
                "domain": spec.domain,
                "extra": ", ".join(sorted(set(spec.modules.values()))),
                "license": spec.license,
                "installed": spec.missing_extra() is None,
                "random": measured.random if measured else None,
                "expert": measured.expert if measured else None,
            }
        )
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'task':46} {'needs':18} {'license':14} {'random':>9} {'expert':>9}")
    for row in rows:
        random, expert = (f"{row[k]:9.2f}" if row[k] is not None else f"{'?':>9}" for k in ("random", "expert"))
        needs = f"gatito[{row['extra']}]" if row["extra"] else "gatito"
        missing = "" if row["installed"] else "  (not installed)"
        print(f"{row['id']:46} {needs:18} {row['license']:14} {random} {expert}{missing}")
    print(f"{len(rows)} tasks in {len({row['domain'] for row in rows})} domains; groups: {', '.join(groups())}")


def measure_tasks(names: list[str], episodes: int, processes: int, out: str | None) -> None:
    """Measure reference returns and print them, or write them to a file, which keeps those of other tasks."""
    if episodes < 1:
        raise UserError(f"--episodes is {episodes}, allowed 1 and more")
    if processes < 1:
        raise UserError(f"--processes is {processes}, allowed 1 and more")
    chosen = [task for task in matching(names) if registry()[task].returns_of is None]
    if not chosen:
        shared = {registry()[task].returns_of for task in matching(names)}
        raise UserError(
            f"--measure {','.join(names)}: its references are those of {', '.join(sorted(map(str, shared)))}"
        )
    for task in chosen:
        get_task(task)
    path = Path(out) if out else None
    known: dict[str, dict[str, float]] = {}
    if path and path.exists():
        try:
            before = json.loads(path.read_text())
            known = before["tasks"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"--out {out} is no file of references ({error}); choose another") from None
        if before.get("episodes") != episodes:
            raise UserError(f"--out {out} was measured over {before.get('episodes')} episodes, not {episodes}")
    elif path and not path.absolute().parent.is_dir():
        raise UserError(f"--out {out}: its folder does not exist; choose another file")
    for task, means in measure_references(chosen, episodes, processes):
        known[task] = means | {"episodes": episodes}
        text = json.dumps({"episodes": episodes, "tasks": dict(sorted(known.items()))}, indent=1) + "\n"
        if path:  # after each: hours may lie between the first and the last
            path.write_text(text)
    if not path:
        print(text, end="")


def tokens_of(source: str, episode: int) -> tuple[TokenSequence, Vocabulary, TextTokenizer, Layout | None]:
    """Tokens of an episode of a task, store, Minari dataset, or source of documents."""
    if episode < 0:
        raise UserError(f"--episode is {episode}, allowed 0 and more")
    scheme, _, location = source.partition(":")
    if is_store(source) or is_store(Path(source).parent):
        store, dataset = _store_and_dataset(Path(source))
        layout = Layout.from_json(dataset.metadata["layout"], store.text) if dataset.kind == "control" else None
        return dataset.episode(_index(episode, dataset.num_episodes, source)), store.vocabulary, store.text, layout
    text = TextTokenizer.load()
    vocabulary = Vocabulary(text_size=text.size)
    if scheme == "minari" or is_dataset(source):
        opened = open_minari(location if scheme == "minari" else source)
        layout = open_layout(opened, vocabulary, text)
        data = opened.episode(episode)
        sequence, _ = checked_tokens(layout, data, where=f"{opened.path}, episode {episode}")
        return sequence, vocabulary, text, layout
    if scheme in DOCUMENT_SCHEMES:
        return document_at(source, episode, vocabulary, text), vocabulary, text, None
    return _task_tokens(source, episode, vocabulary, text)


def _store_and_dataset(path: Path) -> tuple[Store, TokenDataset]:
    """`STORE/DATASET`, or of a store alone its first dataset."""
    if is_store(path):
        store = open_store(path, verify=False)
        return store, store.datasets[0]
    store = open_store(path.parent, verify=False)
    found = {dataset.folder.name: dataset for dataset in store}
    if path.name not in found:
        raise UserError(nearest(path.name, found, f"dataset of {path.parent}"))
    return store, found[path.name]


def _task_tokens(
    task: str, seed: int, vocabulary: Vocabulary, text: TextTokenizer
) -> tuple[TokenSequence, Vocabulary, TextTokenizer, Layout | None]:
    """The expert's episode of a task, or a random one of any other Gymnasium environment."""
    spec = any_environment(task)
    env = spec.make()
    layout = spec.layout(env, vocabulary, text)
    agent: Literal["expert", "random"] = "expert" if task in registry() else "random"
    try:
        data = episode_from_buffer(collect_episode(spec, env, seed, agent=agent), task, agent)
    except ExpertFailed as error:
        raise UserError(
            f"task {task!r}: the expert fails on seed {seed} ({error}); choose another --episode"
        ) from None
    env.close()
    sequence, _ = checked_tokens(layout, data, where=f"{task}, seed {seed}")
    return sequence, vocabulary, text, layout


def _index(episode: int, count: int, source: str) -> int:
    if not 0 <= episode < count:
        raise UserError(f"{source} has no episode {episode}; it has {count}, 0 to {count - 1}")
    return episode


def show_tokens(source: str, episode: int, timesteps: int, as_json: bool) -> None:
    """Print rows of tokens."""
    if timesteps < 1:
        raise UserError(f"--timesteps is {timesteps}, allowed 1 and more")
    sequence, vocabulary, text, layout = tokens_of(source, episode)
    rows = token_rows(sequence, vocabulary, text, layout)
    if as_json:
        print(json.dumps(rows))
        return
    shown = min(timesteps if layout else max(timesteps, 40), sequence.num_timesteps)
    print(f"{sequence}; {shown} timesteps:")
    for row in rows[: int(sequence.timestep_starts[shown])]:
        target = "target" if row["loss_mask"] else ""
        token = "-" if row["id"] is None else row["id"]
        print(f"{token!s:>6}  {row['modality']:11} {row['local_position']:>4}  {target:6}  {row['meaning']}")


def show_info(source: str, recipe: Recipe | None, data: str | None, gpus: int) -> None:
    """Print what a recipe or checkpoint is made of, what it costs, and how many timesteps its context holds."""
    store = open_store(Path(data), verify=False) if data else None
    layouts: dict[str, Layout] = {}
    if recipe is not None:
        rows_per_gpu(recipe.train, gpus)  # refuses what does not divide
        text = store.text if store else TextTokenizer.load()
        vocabulary = store.vocabulary if store else Vocabulary(text_size=text.size)
        config = recipe.model.build(vocabulary, recipe.train.context, text.end)
        if store:
            processor_of(store, config.trunk)  # refuses what this recipe could not train on
    elif source.startswith("hf:") or Path(source).is_dir():
        if gpus != 1:
            raise UserError(f"--gpus {gpus} is for recipes: checkpoint {source} has no batch to divide")
        model, processor = load_checkpoint(source)
        config, layouts = model.config, processor.layouts
        if store and store.vocabulary != config.vocabulary:
            raise UserError(f"--data {data} has other ids than checkpoint {source}; give the store it was trained on")
    else:
        raise UserError(nearest(source, recipe_names(), "recipe or checkpoint"))
    train = recipe.train if recipe else TrainConfig()
    reach = reach_of_data(list(store), config) if store else reach_of_layouts(layouts, config)
    rows = sampled_rows(store, config, train) if store else [assumed_row(config, train)]
    cost, parameters = cost_of(rows, config), count_parameters(config)
    print(
        f"{source}: width {config.hidden_size}, {config.num_hidden_layers} layers, context {config.context} positions"
    )
    print_parameters(parameters)
    if reach:
        print_reach(reach)
    if reach and store is None:
        print("of tasks alone, the texts inside observations counted as empty; --data STORE measures what it holds")
    print_flops(cost, train if recipe else None)
    measured = f"measured on {len(rows)} rows of {data}" if store else ASSUMED
    print(f"  {measured}; {cost.targets / cost.tokens:.1%} of the tokens are targets")
    if recipe:
        print_memory(training_memory(config, train, parameters, cost.dense, gpus), train, gpus)
