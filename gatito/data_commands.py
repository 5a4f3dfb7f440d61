"""What the verbs below `gatito data` do and print."""

import dataclasses
import glob
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from gatito.data.build import open_layout
from gatito.data.card import dataset_card
from gatito.data.checks import check_store
from gatito.data.collect import collect
from gatito.data.collection import CollectConfig
from gatito.data.describe import store_table
from gatito.data.documents import DOCUMENT_SCHEMES, count_documents
from gatito.data.engine import EngineName
from gatito.data.formats.export import export_hub
from gatito.data.formats.importing import import_episodes
from gatito.data.formats.lerobot_export import export_lerobot
from gatito.data.formats.source import ImportConfig
from gatito.data.minari_episodes import MinariSource, is_dataset, open_minari
from gatito.data.publish import check_writable
from gatito.data.store import Store, is_store, open_store
from gatito.data.survey import Survey, survey
from gatito.data.tasks import TaskSpec, get_task, matching, references, registry
from gatito.data.text_model import Algorithm, train_text_model, write_text_model
from gatito.errors import UserError
from gatito.policies import any_environment, modules_of, played_by
from gatito.tokenizers import TextTokenizer, Vocabulary


def collect_datasets(tasks: list[str], env: str | None, policy: str | None, out: Path, config: CollectConfig) -> None:
    """Collect tasks, or a Gymnasium environment that is none, into Minari datasets."""
    specs: list[str | TaskSpec] = list(matching(tasks))
    modules, name = modules_of(env, policy)
    if name is not None:
        if name not in registry() and policy is None:
            raise UserError(
                f"--env {env} has no scripted expert; name who acts: --policy random|module:function|CHECKPOINT"
            )
        specs.append(any_environment(name, modules))
    if not specs:
        raise UserError("missing: --tasks or --env; name what to collect")
    if policy is not None:
        played = [played_by(spec if isinstance(spec, TaskSpec) else get_task(spec), policy) for spec in specs]
        specs = [spec for spec, _ in played]
        config = dataclasses.replace(config, agents={played[0][1]: 1.0})
    for path in collect(specs, out, config):
        print(path)


def import_dataset(
    config: ImportConfig,
    out: Path,
    env: str | None,
    count: int | None,
    metadata: Mapping[str, Any],
    engine: EngineName,
    processes: int,
) -> None:
    """Import a dataset of another format, with the spaces of an environment where one is named."""
    if count is not None and count < 1:
        raise UserError(f"--episodes is {count}, allowed 1 and more")
    given = None
    if env is not None:
        modules, name = modules_of(env, None)
        with closing(any_environment(name or "", modules).make()) as made:
            given = made.observation_space, made.action_space
    written = import_episodes(
        config, out, given=given, count=count, metadata=metadata, engine=engine, processes=processes
    )
    print(f"{out}: {written} episodes of {config.task}")


def export_dataset(source: str, to: Literal["hf", "lerobot", "minari"], out: Path, fps: float, context: int) -> None:
    """Export a Minari dataset and print what was written."""
    if to != "minari":
        if out.exists():  # before all of it is read
            raise UserError(f"--out {out} exists; choose another folder or remove it")
        seen = _survey(source, context)
        for path in export_hub(seen, out) if to == "hf" else export_lerobot(seen, out, fps):
            print(path)
        return
    location = source.removeprefix("minari:")
    config = ImportConfig(source=f"minari:{location}", task=open_minari(location).task)
    print(f"{out}: {import_episodes(config, out)} episodes of {config.task}")


def make_text_model(sources: Sequence[str], out: Path, size: int, algorithm: Algorithm, threads: int) -> None:
    """Train a SentencePiece model into a file that is not there yet."""
    if out.exists():
        raise UserError(f"--out {out} exists; choose another file or remove it")
    if threads < 1:
        raise UserError(f"--threads is {threads}, allowed 1 and more")
    check_writable(out.parent)
    model = train_text_model(sources, size, algorithm, threads)
    write_text_model(model, out)
    print(f"{out}: {model.size} pieces; name it as text_model: in a mixture")


def check_sources(sources: Sequence[str], context: int) -> None:
    """Check datasets and stores and print what is wrong; raises `UserError` where something would not train."""
    errors, names = 0, _expanded(sources)
    for source in names:
        if is_store(source):
            try:
                check_store(open_store(Path(source)))
            except UserError as error:
                print(f"{'error':8} {'store':11} {error}")
                errors += 1
                continue
            print(f"{source}: every file is as it was written, offsets, ids and seeds are sound")
            continue
        try:
            if source.partition(":")[0] in DOCUMENT_SCHEMES:
                print(f"{source}: {_counted(source)}")
                continue
            seen = _survey(source, context)
        except UserError as error:
            if len(names) == 1:
                raise
            print(f"{'error':8} {'unreadable':11} {error}")
            errors += 1
            continue
        errors += seen.num_errors
        for finding in seen.findings:
            print(f"{finding.level:8} {finding.kind:11} {finding.text}")
        warnings = len(seen.findings) - seen.num_errors
        agents = ", ".join(f"{agent} {returns.mean():.4g}" for agent, returns in seen.by_agent())
        print(
            f"{source}: {len(seen.returns)} episodes, {sum(seen.lengths)} timesteps, at most {seen.longest} tokens "
            f"each; mean return {agents or 'of none'}; {seen.num_errors} errors, {warnings} warnings"
        )
    if errors:
        raise UserError(f"{errors} errors; what has them does not train")


def show_sources(sources: Sequence[str]) -> None:
    """Print a table of datasets, or of what a store holds."""
    names = _expanded(sources)
    for store in (name for name in names if is_store(name)):
        describe_store(open_store(Path(store), verify=False))
    datasets, unreadable = [], []
    for name in names:
        if not is_store(name):
            try:
                datasets.append(open_minari(name))
            except UserError as error:  # the others are still shown
                unreadable.append(error)
    if datasets:
        _print_datasets(datasets)
    if unreadable:
        raise UserError("; ".join(map(str, unreadable)))


def _print_datasets(datasets: Sequence[MinariSource]) -> None:
    print(f"{'task':44} {'agents':22} {'episodes':>8} {'timesteps':>9} {'MB':>7} {'random':>8} {'expert':>8}  path")
    for source in datasets:
        storage = source.dataset.storage
        random, expert = (f"{'?':>8}" if value is None else f"{value:8.2f}" for value in _ends_of_scale(source))
        print(
            f"{source.task:44} {source.agent:22} {len(source):>8} {storage.total_steps:>9} "
            f"{float(storage.metadata.get('dataset_size', 0)):>7.1f} {random} {expert}  {source.path}"
        )
    print(
        f"{len(datasets)} datasets, {sum(len(d) for d in datasets)} episodes, "
        f"{sum(int(d.dataset.storage.total_steps) for d in datasets)} timesteps"
    )


def _ends_of_scale(source: MinariSource) -> tuple[float | None, float | None]:
    """Returns of the random policy and of the expert: those of the task, or those that the dataset states."""
    known = references().get(source.task)
    return (known.random, known.expert) if known else (source.stated("ref_min_score"), source.stated("ref_max_score"))


def report_dataset(source: str, out: Path, context: int) -> None:
    """Write the HTML report of a dataset to a file that is not there yet."""
    from gatito.data.report import write_dataset_report

    if out.exists():
        raise UserError(f"--out {out} exists; choose another file or remove it")
    check_writable(out.parent)
    write_dataset_report(_survey(source, context), out)
    print(out)


def card_of_dataset(source: str, out: Path | None, context: int) -> None:
    """Print the card of a dataset, or write it to a file that is not there yet."""
    if out is not None and out.exists():
        raise UserError(f"--out {out} exists; choose another file or remove it")
    card = dataset_card(_survey(source, context))
    if out is None:
        print(card, end="")
    else:
        check_writable(out.parent)
        out.write_text(card)
        print(out)


def describe_store(store: Store) -> None:
    """Print what a store holds: what is trained on with its share of the rows, then what is held out."""
    print(store_table(store, {d.name: [d] for d in store.datasets}, {}))
    if store.held_out:
        print("held out:")
        print(store_table(store, {d.name: [d] for d in store.held_out}, {}))
    # What is held out of a dataset has the counts of the whole.
    for dataset in {d.name: d for d in (*store.held_out, *store.datasets)}.values():
        m = dataset.metadata
        if m.get("filtered_episodes") or m.get("clipped_observations") or m.get("clipped_actions"):
            print(
                f"{dataset.name}: filtered {m['filtered_episodes']} episodes; outside their declared bounds: "
                f"{m['clipped_observations']} observation values, {m['clipped_actions']} action values (clipped)"
            )
    total = {key: sum(d.metadata[key] for d in store) for key in ("episodes", "timesteps", "tokens", "targets")}
    size = sum(path.stat().st_size for path in store.folder.rglob("*") if path.is_file())
    print(
        f"{store.folder}: {len(store.datasets)} datasets to train on, {total['episodes']} episodes, "
        f"{total['timesteps']} timesteps, {total['tokens']} tokens, {total['targets'] / total['tokens']:.1%} of them "
        f"targets; {size / 1e6:.1f} MB"
    )
    used = {d.folder.relative_to(store.folder).parts[0] for d in (*store.datasets, *store.held_out)}
    others = sorted(path.parent.name for path in store.folder.glob("*/dataset.json") if path.parent.name not in used)
    if others:
        print(f"in the folder, but not in the mixture any more: {', '.join(others)}")


def _survey(source: str, context: int) -> Survey:
    opened = open_minari(source.removeprefix("minari:"))
    text = TextTokenizer.load()
    layout = open_layout(opened, Vocabulary(text_size=text.size), text)
    with tqdm(total=len(opened), desc=f"read {opened.task}", unit="episode", leave=False) as bar:
        return survey(opened, layout, context, bar.update)


def _counted(source: str) -> str:
    """What a source of documents comes to, in words."""
    text = TextTokenizer.load()
    found = count_documents(source, Vocabulary(text_size=text.size), text)
    share = found.targets / found.tokens
    return (
        f"{found.documents} documents, {found.images} images, {found.tokens} tokens, at most {found.longest} each, "
        f"{share:.0%} of them targets; no errors"
    )


def _expanded(sources: Sequence[str]) -> list[str]:
    """Patterns replaced by the datasets and stores that they find."""
    found: list[str] = []
    for source in sources:
        if not glob.has_magic(source) or source.partition(":")[0] in DOCUMENT_SCHEMES:
            found.append(source)
            continue
        paths = sorted(glob.glob(source, recursive=True))
        matches = [path for path in paths if is_store(path) or is_dataset(path)]
        if not matches:
            raise UserError(f"{source!r} finds no dataset and no store; it runs from {Path.cwd()}")
        found += matches
    return found
