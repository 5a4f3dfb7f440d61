"""What `gatito eval`, `gatito compare` and `gatito push` do."""

import time
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm

from gatito.data.publish import check_writable
from gatito.data.tasks import TaskSpec, registry
from gatito.errors import UserError
from gatito.eval.agent import load_checkpoint, weights_sha256
from gatito.eval.card import scored_card, write_card
from gatito.eval.compare import compare, prompts_of
from gatito.eval.compare_report import check_comparison, print_comparison, write_comparison
from gatito.eval.config import EvaluationConfig
from gatito.eval.evaluate import baselines_of, check_tasks, episodes_of, evaluate
from gatito.eval.film import film
from gatito.eval.journal import SETTINGS, Journal
from gatito.eval.language import NUM_DOCUMENTS, evaluate_language
from gatito.eval.mp4 import pyav
from gatito.eval.record import RolloutRecorder
from gatito.eval.report import Report, write_report
from gatito.eval.results import FILE, Results, print_results, read_results, write_results
from gatito.model import GatitoProcessor
from gatito.policies import any_environment, modules_of
from gatito.train.hub import push_to_hub

RECORDED = ".recorded"
"""Folder of the episodes that are to become datasets."""
SHOWN_SHA = 16
"""Letters of the hash of the weights that results name."""
LONGEST_WAIT = timedelta(days=7)
"""For the slowest process of an evaluation."""


def evaluate_checkpoint(
    checkpoint: str,
    out: Path,
    tasks: list[str] | None,
    env: str | None,
    config: EvaluationConfig,
    *,
    record: str | None = None,
    videos: int = 0,
    attention_step: int = 20,
    language: Sequence[str] = (),
    language_documents: int = NUM_DOCUMENTS,
) -> None:
    """Score a checkpoint; write `results.json`, `report.html` and `card.md`.

    Several processes (`torchrun`, `accelerate launch`) share the episodes through the folder `out`. Whatever ends
    this before all is written, the same call goes on from there.
    """
    began = time.monotonic()
    check_writable(out)
    if env is not None and tasks is not None:
        raise UserError("give --tasks or --env, not both")
    if (out / FILE).exists() and not (out / SETTINGS).exists():
        raise UserError(f"{out / FILE} exists; choose another --out or remove it")
    if videos < 0 or attention_step < 0:
        raise UserError(f"--videos {videos} and --attention-step {attention_step}: allowed 0 and more")
    if language_documents < 1:
        raise UserError(f"--language-documents is {language_documents}, allowed 1 and more")
    if videos:
        _check_pyav()
    # Without `cpu` torchrun's processes on CPUs would each evaluate everything.
    processes = PartialState(cpu=not torch.accelerator.is_available(), timeout=LONGEST_WAIT)
    model, processor = load_checkpoint(checkpoint)
    settings = {
        "checkpoint": checkpoint,
        "folder": Path(str(model.name_or_path)).name,  # of a run its newest checkpoint that is intact
        "weights": weights_sha256(model)[:SHOWN_SHA],
        **config.to_json(),
    }
    chosen = [] if tasks == [] else _chosen(checkpoint, processor, tasks, env)
    checked = check_tasks(processor, chosen, config)
    recorder = None
    if record is not None:
        recorder = RolloutRecorder(out / RECORDED, Path(record), {task.spec.id: task.env for task in checked})
        if not (out / SETTINGS).exists():
            recorder.check([task.spec for task in checked], config.prompts)
    ids = [task.spec.id for task in checked]
    share = (processes.process_index, processes.num_processes)
    with Journal(out, {**settings, "tasks": ids, "record": record}, rank=share[0]) as journal:
        evaluate(model, processor, checked, config, journal=journal, recorder=recorder, share=share)
        processes.wait_for_everyone()
        if not processes.is_main_process:
            return
        measured = [evaluate_language(model, processor, source, language_documents) for source in language]
        results = Results(
            records=journal.all_records(episodes_of(checked, config)),
            baselines=baselines_of(checked),
            checkpoint=checkpoint,
            settings=settings | machine(),
            language=[found.score for found in measured],
            seconds={}
            if journal.records
            else {"evaluate": time.monotonic() - began},  # else there were others before
        )
        write_results(results, out / FILE)
        if recorder is not None:
            for folder in recorder.publish([task.spec for task in checked], config.prompts, results):
                tqdm.write(str(folder))
        filmed, views = film(results, out / "videos", model, checked, config, videos, attention_step)
        run = Path(checkpoint)
        report = Report(
            title=f"gatito: {checkpoint}",
            results=results,
            metrics=run / "metrics.jsonl",
            evaluations=run / "evaluations.jsonl",
            videos=filmed,
            attention=views,
            answers=[answer for found in measured for answer in found.answers],
        )
        write_report(report, out / "report.html")
        write_card(results, out / "card.md")
        journal.remove()
    print_results(results)
    tqdm.write("\n".join(str(out / name) for name in (FILE, "report.html", "card.md")))


def _check_pyav() -> None:
    """Before the first episode."""
    try:
        pyav()
    except UserError as error:
        raise UserError(f"{error}, or do without: --videos 0") from None


def machine() -> dict[str, Any]:
    """What an evaluation ran on."""
    return {"torch": torch.__version__, "threads": torch.get_num_threads()}


def _chosen(
    checkpoint: str, processor: GatitoProcessor, tasks: list[str] | None, env: str | None
) -> Sequence[str | TaskSpec]:
    """The tasks that are evaluated: named ones, an environment of the user's, or all that the checkpoint knows."""
    if env is not None:
        modules, name = modules_of(env, None)
        return [any_environment(name or "", modules)]
    chosen = tasks or sorted(set(processor.layouts) & set(registry()))
    if not chosen:
        known = ", ".join(sorted(processor.layouts)) or "none"
        raise UserError(
            f"checkpoint {checkpoint} knows no task that is registered here (it knows {known}); an environment of "
            "yours is evaluated by --env [module:]ID"
        )
    return chosen


def push_checkpoint(checkpoint: str, to: str, private: bool, results: str | None) -> None:
    """Upload a checkpoint, with the scores of an evaluation of it; refuses those of other weights."""
    scored = None
    if results is not None:
        found = read_results(results)
        own = weights_sha256(load_checkpoint(checkpoint)[0])[:SHOWN_SHA]
        if found.settings.get("weights") != own:
            raise UserError(
                f"{results} scores weights {found.settings.get('weights')}, checkpoint {checkpoint} has {own}; "
                "evaluate it first"
            )
        scored = partial(scored_card, results=found)
    print(push_to_hub(checkpoint, to, private=private, scored=scored))


def compare_results(sources: list[str], prompts: str | None, out: Path | None) -> None:
    """Compare two evaluations, or two prompts of one; print the table and write a page."""
    if len(sources) > 2:
        raise UserError(f"{len(sources)} results are named, expected one or two: gatito compare A B")
    first, second = sources[0], sources[-1]
    chosen = prompts_of(prompts) if prompts is not None else None
    if len(sources) == 1 and chosen is None:
        raise UserError(f"{first} is compared with nothing; name another, or two prompts: --prompts none,beginning")
    page = check_comparison(out)[0] if out is not None else None
    if page is not None:
        check_writable(page.parent)
    a, b = read_results(first), read_results(second)
    said = [f", prompt {prompt}" for prompt in chosen] if chosen else ["", ""]
    found = compare(a, b, prompts=chosen, names=(f"{first}{said[0]}", f"{second}{said[1]}"))
    print_comparison(found)
    if page is not None:
        write_comparison(found, page)
        print(f"{page}\n{page.with_suffix('.json')}")
