"""The verbs of the command line: what they take, and the function that does it.

What does it is imported when it is called: `gatito --help` is not to wait for torch.
"""

from pathlib import Path
from typing import Any, Literal

from gatito.errors import UserError


def tasks(
    names: str = "all",
    measure: str | None = None,
    episodes: int = 100,
    processes: int = 1,
    out: str | None = None,
    json: bool = False,
) -> None:
    """List known tasks, or measure their reference returns.

    Args:
        names: Task ids, groups and patterns such as `babyai/*` to list, separated by commas.
        measure: Task ids, groups and patterns, or `all`, whose random and expert returns to measure.
        episodes: Seeded episodes per policy to measure over.
        processes: Tasks measured at the same time.
        out: File for the measured references; those of other tasks in it are kept.
        json: Print JSON instead of a table.
    """
    from gatito.commands import list_tasks, measure_tasks

    if measure:
        measure_tasks(names_of(measure, "measure"), episodes, processes, out)
    else:
        list_tasks(names_of(names, "names"), json)


def tokens(source: str, episode: int = 0, timesteps: int = 2, json: bool = False) -> None:
    """Show how a dataset's episode, or an environment's first timesteps, become tokens.

    Args:
        source: Task or Gymnasium id, store or a dataset in it, `minari:FOLDER_OR_ID`, or documents (`text:...`).
        episode: Episode of the dataset; for a task, the seed.
        timesteps: Timesteps that the table shows; --json writes the whole episode.
        json: Print rows as JSON.
    """
    from gatito.commands import show_tokens

    show_tokens(source, episode, timesteps, json)


def collect(
    out: str,
    tasks: str | None = None,
    env: str | None = None,
    policy: str | None = None,
    episodes: int = 100,
    agents: str = "noisy",
    labels: Literal["expert", "executed"] = "expert",
    first_seed: int = 0,
    processes: int = 2,
    engine: Literal["local", "ray"] = "local",
) -> None:
    """Collect episodes of scripted experts, or of a policy of yours, into Minari datasets.

    Args:
        out: Folder for the datasets, one below it per task; the same command continues a run that was killed.
        tasks: Task ids, groups and patterns such as `babyai/*`, separated by commas.
        env: Id of any other Gymnasium environment, or `module:id` for one that a module of yours registers.
        policy: Who acts instead of the expert: `random`, `module:function` (environment to policy) or a checkpoint.
        episodes: Episodes per task.
        agents: Source agents: `expert`, `noisy` (random actions executed), `random`, or shares `expert=3,noisy=1`.
        labels: Which action is recorded where noise was executed.
        first_seed: Seed of the first episode.
        processes: Processes that simulate; for Ray, CPUs of the one that is started without RAY_ADDRESS.
        engine: Processes of this machine, or Ray: the cluster that RAY_ADDRESS names, else one started here.
    """
    from gatito.data.collection import CollectConfig, parse_agents
    from gatito.data_commands import collect_datasets

    config = CollectConfig(
        episodes=episodes,
        agents=parse_agents(agents),
        labels=labels,
        first_seed=first_seed,
        processes=processes,
        engine=engine,
    )
    chosen = names_of(tasks, "tasks") if tasks is not None else []
    collect_datasets(chosen, env, policy, Path(out), config)


def import_(
    source: str,
    out: str,
    task: str | None = None,
    env: str | None = None,
    map: str | None = None,
    split: str = "train",
    episodes: int | None = None,
    agent: str | None = None,
    license: str | None = None,
    random_return: float | None = None,
    expert_return: float | None = None,
    max_episode_steps: int | None = None,
    engine: Literal["local", "ray"] = "local",
    processes: int = 2,
) -> None:
    """Import a dataset of another format as a Minari dataset.

    Args:
        source: `minari:`, `hf:`, `lerobot:` or `hdf5:` with a folder, file or id; `hf:OWNER/NAME[/CONFIG]`.
        out: Folder of the dataset.
        task: Task id of the episodes; by default that of --env, or by the name of the source.
        env: Gymnasium id of their environment, or `module:id`: its spaces are taken, and values compared with them.
        map: What fields are taken for, as `observation=obs/state,action=actions`; also `observation.NAME`, `reward`,
            `terminated` and `truncated`. Without it, an error lists the fields.
        split: Of `hf:` sources.
        episodes: Episodes to import, the first ones; all by default.
        agent: Who acted.
        license: Of the dataset, as an SPDX expression.
        random_return: Mean return of the random policy, from which the expert filter and scores are measured.
        expert_return: Mean return of the expert.
        max_episode_steps: Length at which episodes were cut, where a file does not say which were.
        engine: Where episodes are read: here, or by Ray.
        processes: CPUs of a Ray that is started on this machine.
    """
    from gatito.data.formats.importing import task_of
    from gatito.data.formats.source import ImportConfig, parse_mapping
    from gatito.data_commands import import_dataset

    config = ImportConfig(
        source=source,
        task=task_of(source, task, env.rpartition(":")[2] if env else None),
        mapping=parse_mapping(map) if map is not None else {},
        split=split,
        agent=agent,
        max_episode_steps=max_episode_steps,
    )
    said = {"gatito_license": license, "ref_min_score": random_return, "ref_max_score": expert_return}
    stated = {key: value for key, value in said.items() if value is not None}
    import_dataset(config, Path(out), env, episodes, stated, engine, processes)


def export(
    source: str, to: Literal["hf", "lerobot", "minari"], out: str, fps: float = 10.0, context: int = 1024
) -> None:
    """Export a Minari dataset to another format.

    Args:
        source: Folder or id of a Minari dataset.
        to: `hf`, a dataset repository of the hub, `lerobot`, a LeRobotDataset v3.0, or `minari`, its Arrow format.
        out: Folder that is written.
        fps: Frames a second that LeRobot's timestamps count; Minari knows of none.
        context: Positions that a timestep must fit, for the card.
    """
    from gatito.data_commands import export_dataset

    export_dataset(source, to, Path(out), fps, context)


def tokenizer(
    sources: list[str], out: str, size: int = 8000, algorithm: Literal["bpe", "unigram"] = "bpe", threads: int = 1
) -> None:
    """Train a SentencePiece model on texts of yours, for `text_model:` of a mixture.

    Args:
        sources: Documents, such as `text:notes.txt` or `captions:photos`, all of whose texts are learned from.
        out: File of the model, such as `mine.model`.
        size: Pieces; 256 single bytes and 3 marks are among them.
        algorithm: How pieces are found.
        threads: Threads that train.
    """
    from gatito.data_commands import make_text_model

    make_text_model(sources, Path(out), size, algorithm, threads)


def check(sources: list[str], context: int = 1024) -> None:
    """Check datasets and stores, and say what is wrong with them.

    Args:
        sources: Folders of datasets and stores, patterns of them, or documents such as `captions:photos`.
        context: Positions that a timestep must fit.
    """
    from gatito.data_commands import check_sources

    check_sources(sources, context)


def describe(sources: list[str]) -> None:
    """Print a table of datasets, or of what a store holds.

    Args:
        sources: Folders of datasets and stores, or patterns of them.
    """
    from gatito.data_commands import show_sources

    show_sources(sources)


def report(source: str, out: str, context: int = 1024) -> None:
    """Write one HTML page on a dataset: values, returns, episodes to play, tokens, and what is wrong.

    Args:
        source: Folder or id of a Minari dataset.
        out: HTML file.
        context: Positions that a timestep must fit.
    """
    from gatito.data_commands import report_dataset

    report_dataset(source, Path(out), context)


def card(source: str, out: str | None = None, context: int = 1024) -> None:
    """Write the card (README.md) of a dataset, or print it.

    Args:
        source: Folder or id of a Minari dataset.
        out: File of the card.
        context: Positions that a timestep must fit.
    """
    from gatito.data_commands import card_of_dataset

    card_of_dataset(source, None if out is None else Path(out), context)


def evaluate(
    checkpoint: str,
    config: Any,
    out: str,
    tasks: str | None = None,
    env: str | None = None,
    record: str | None = None,
    videos: int = 4,
    attention_step: int = 20,
    language: str | None = None,
    language_documents: int = 400,
) -> None:
    """Score a checkpoint on seeded episodes; write results.json, report.html and card.md.

    Args:
        checkpoint: Checkpoint folder, folder of a run, or `hf:owner/name` on the hub.
        config: An `EvaluationConfig`.
        out: Folder for the results; the same command continues an evaluation that was killed.
        tasks: Task ids, groups and patterns, separated by commas, or `none`; all that it knows by default.
        env: Gymnasium id of an environment of yours that the checkpoint was trained on, or `module:id`.
        record: Folder to write the episodes to, as Minari datasets.
        videos: Episodes that are filmed, with the last of the prompts: of the worst tasks and of the best.
        attention_step: Timestep of the filmed episodes whose attention over the context the report shows.
        language: Sources of captions, questions and texts as in a mixture, separated by commas: `captions:digits` and
            `scenes:` are their held-out documents.
        language_documents: Documents of each source, the first ones.
    """
    from gatito.data.tasks import matching
    from gatito.eval_commands import evaluate_checkpoint

    if tasks == "none" and language is None:
        raise UserError("--tasks none leaves nothing to evaluate; give --language SOURCES")
    chosen = [] if tasks == "none" else matching(names_of(tasks, "tasks")) if tasks is not None else None
    evaluate_checkpoint(
        checkpoint,
        Path(out),
        chosen,
        env,
        config,
        record=record,
        videos=videos,
        attention_step=attention_step,
        language=names_of(language, "language") if language is not None else [],
        language_documents=language_documents,
    )


def compare(sources: list[str], prompts: str | None = None, out: str | None = None) -> None:
    """Compare two evaluations on the episodes that both played, or two prompts of one.

    Args:
        sources: One or two folders with results.json, or such files: A, and B where it is another.
        prompts: Two, such as `none,beginning`: A with the first is paired with B, or A again, with the second.
        out: HTML file, or folder for compare.html; the same is written as JSON beside it.
    """
    from gatito.eval_commands import compare_results

    compare_results(sources, prompts, None if out is None else Path(out))


def push(checkpoint: str, to: str, private: bool = False, results: str | None = None) -> None:
    """Upload a checkpoint with its model card to the Hugging Face hub.

    Args:
        checkpoint: Checkpoint folder, or folder of a run, whose newest checkpoint it is.
        to: Repository, `owner/name`.
        private: Whether only its owner sees the repository, where it is new.
        results: Folder that `gatito eval` wrote of this checkpoint, whose scores are added to the card.
    """
    from gatito.eval_commands import push_checkpoint

    push_checkpoint(checkpoint, to, private, results)


def demo(out: str = "demo", small: bool = False) -> None:
    """Collect, build, train and evaluate five domains with one set of weights, then write a report.

    Args:
        out: Folder for everything that the demo writes.
        small: The same in under 3 minutes.
    """
    from gatito.demo import run_demo

    run_demo(Path(out), small=small)


def names_of(listed: str, option: str) -> list[str]:
    """The names of an option that takes several, separated by commas."""
    names = [name.strip() for name in listed.split(",")]
    if not all(names):
        raise UserError(f"--{option} {listed!r} names nothing between or after its commas; list task ids")
    return names
