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
from gatito.data.tasks import EVALUATION_SEEDS, TaskSpec, registry
from gatito.errors import UserError
from gatito.eval.agent import load_checkpoint, weights_sha256
from gatito.eval.attention import AttentionView, view_attention
from gatito.eval.card import scored_card, write_card
from gatito.eval.compare import compare, prompts_of
from gatito.eval.compare_report import check_comparison, print_comparison, write_comparison
from gatito.eval.config import EvaluationConfig
from gatito.eval.evaluate import CheckedTask, baselines_of, check_tasks, evaluate, make_actor, make_prompts
from gatito.eval.journal import SETTINGS, Journal
from gatito.eval.mp4 import pyav
from gatito.eval.record import RolloutRecorder
from gatito.eval.report import Report, write_report
from gatito.eval.results import FILE, Results, print_results, read_results, write_results
from gatito.eval.scores import EpisodeRecord, TaskResult
from gatito.eval.videos import Video, record_episode
from gatito.model import GatitoForCausalLM, GatitoProcessor
from gatito.policies import any_environment, modules_of
from gatito.train.hub import push_to_hub

RECORDED = ".recorded"
"""Folder of the episodes that are to become datasets."""
MAX_VIEWS = 2
"""Filmed episodes of which the report shows what the model looks at."""
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
    if videos:
        pyav()  # before the first episode
    processes = PartialState(timeout=LONGEST_WAIT)
    model, processor = load_checkpoint(checkpoint)
    settings = {"checkpoint": checkpoint, "weights": weights_sha256(model)[:SHOWN_SHA], **config.to_json()}
    checked = check_tasks(processor, _chosen(checkpoint, processor, tasks, env), config)
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
        results = Results(
            records=journal.all_records(ids, config.prompts),
            baselines=baselines_of(checked),
            checkpoint=checkpoint,
            settings=settings | machine(),
            seconds={"evaluate": time.monotonic() - began},
        )
        write_results(results, out / FILE)
        if recorder is not None:
            for folder in recorder.publish([task.spec for task in checked], config.prompts, results):
                tqdm.write(str(folder))
        filmed, views = _film(results, out / "videos", model, checked, config, videos, attention_step)
        run = Path(checkpoint)
        report = Report(
            title=f"gatito: {checkpoint}",
            results=results,
            metrics=run / "metrics.jsonl",
            evaluations=run / "evaluations.jsonl",
            videos=filmed,
            attention=views,
        )
        write_report(report, out / "report.html")
        write_card(results, out / "card.md")
        journal.remove()
    print_results(results)
    tqdm.write("\n".join(str(out / name) for name in (FILE, "report.html", "card.md")))


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


def _film(
    results: Results,
    folder: Path,
    model: GatitoForCausalLM,
    checked: Sequence[CheckedTask],
    config: EvaluationConfig,
    videos: int,
    attention_step: int,
) -> tuple[list[Video], list[AttentionView]]:
    """Videos of the worst tasks and the best, and what the model looked at in two of the episodes.

    An episode that cannot be played again costs its video, not the report.
    """
    actor, part = make_actor(model, config, 1), config.prompts[-1]
    by_id = {task.spec.id: task for task in checked}
    filmed: list[Video] = []
    shown: list[tuple[int, AttentionView]] = []
    for row in tqdm(worst_and_best(results.tasks, part, videos), desc="film", unit="episode", disable=not videos):
        task, episode = by_id[row.id], lowest(results.records, row)
        try:
            prompt = None
            if part != "none":
                number = (episode.seed - EVALUATION_SEEDS) // config.episodes_in_context
                prompt = make_prompts(model, task, config).prompt(part, number, episode.seed)
            video = record_episode(actor, task, folder, seed=episode.seed, prompt=prompt)
            step = min(attention_step, video.length - 1)
            shown.append((step, view_attention(actor, task, step, seed=episode.seed, prompt=prompt)))
        except Exception as error:  # whatever another package's simulator raises
            tqdm.write(f"not filmed: {row.id}, seed {episode.seed}: {type(error).__name__}: {error}")
            continue
        filmed.append(video)
    # Late steps have more to look at; of equal ones those of the worst task and of the best.
    ranked = sorted(range(len(shown)), key=lambda i: (-shown[i][0], min(i, len(shown) - 1 - i)))
    return filmed, [shown[i][1] for i in sorted(ranked[:MAX_VIEWS])]


def worst_and_best(rows: Sequence[TaskResult], part: str, count: int) -> list[TaskResult]:
    """Rows of as many tasks with a prompt: the worse half of them the worst, the rest the best."""
    played = [row for row in rows if row.prompt == part and row.episodes]
    ranked = sorted(played, key=lambda row: (row.score is not None, row.score or 0.0))
    if len(ranked) <= count:
        return ranked
    return ranked[: (count + 1) // 2] + ranked[len(ranked) - count // 2 :]


def lowest(records: Sequence[EpisodeRecord], row: TaskResult) -> EpisodeRecord:
    """The finished episode of a row with the lowest return, the first of a context."""
    own = [r for r in records if (r.task, r.prompt) == (row.id, row.prompt) and r.total_return is not None]
    return min(own, key=lambda r: (r.order, r.total_return or 0.0))


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
