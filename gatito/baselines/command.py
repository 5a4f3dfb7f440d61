"""What `gatito baseline retrieve` and `gatito baseline clone` do."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gatito.baselines.acting import Memoryless
from gatito.baselines.cloning import Clone, clone
from gatito.baselines.config import CloneConfig
from gatito.baselines.demonstrations import Demonstrations, load_demonstrations
from gatito.baselines.evaluate import check_tasks, evaluate_baseline
from gatito.baselines.retrieval import Retrieval
from gatito.baselines.saved import load_clone, save_clone
from gatito.data.publish import check_writable
from gatito.errors import UserError
from gatito.eval.config import EvaluationConfig
from gatito.eval.evaluate import CheckedTask, baselines_of
from gatito.eval.journal import SETTINGS, Journal
from gatito.eval.report import Report, write_report
from gatito.eval.results import FILE, Results, print_results, write_results
from gatito.eval_commands import SHOWN_SHA, machine

POLICIES = "policies"
"""Folder of cloned policies, below it one for each task."""


def run_baseline(
    tasks: Sequence[str],
    source: str,
    out: Path,
    config: EvaluationConfig,
    *,
    count: int | None = None,
    cloning: CloneConfig | None = None,
) -> None:
    """Play a baseline: a policy that is cloned as `cloning` says, else retrieve-and-play.

    It is given the first `count` demonstrations of each task in `source`. Writes `results.json` and `report.html`,
    and cloned policies. Whatever ends this before all is written, the same call goes on from there. Raises
    `UserError` where demonstrations are missing or have other spaces than their task, before the first episode.
    """
    began = time.monotonic()
    check_writable(out)
    if (out / FILE).exists() and not (out / SETTINGS).exists():
        raise UserError(f"{out / FILE} exists; choose another --out or remove it")
    checked = check_tasks(tasks, source, config)
    bar = tqdm(checked, desc="read", unit="task", leave=False)
    data = {task.spec.id: _described(load_demonstrations(task.spec, task.layout, source, count)) for task in bar}
    name = "retrieve" if cloning is None else "clone"
    checkpoint = f"{name}@{_joined_sha256(data)[:SHOWN_SHA]}"
    settings = {
        "baseline": name,
        "demonstrations_from": source,
        "demonstrations": count,
        "data": data,
        "episodes": config.episodes,
        **({} if cloning is None else {f"clone_{key}": value for key, value in asdict(cloning).items()}),
    }

    def make(task: CheckedTask) -> Memoryless:
        demonstrations = load_demonstrations(task.spec, task.layout, source, count)
        if cloning is None:
            return Retrieval(demonstrations)
        return _cloned(demonstrations, cloning, out / POLICIES / task.spec.id)

    with Journal(out, {"checkpoint": checkpoint, **settings, "tasks": list(data)}) as journal:
        results = Results(
            records=evaluate_baseline(checked, make, config, journal=journal),
            baselines=baselines_of(checked),
            checkpoint=checkpoint,
            settings=settings | machine(),
            seconds={}
            if journal.records
            else {"evaluate": time.monotonic() - began},  # else there were others before
        )
        write_results(results, out / FILE)
        write_report(Report(title=f"gatito baseline: {name}, {source}", results=results), out / "report.html")
        journal.remove()
    print_results(results)
    tqdm.write("\n".join(str(out / written) for written in (FILE, "report.html")))


def _cloned(demonstrations: Demonstrations, config: CloneConfig, folder: Path) -> Clone:
    """The policy that `folder` holds, or else a new one, which is saved there; as it is read, be it new or not."""
    if not folder.exists():
        save_clone(clone(demonstrations, config), folder)
    found = load_clone(folder)
    if found.data_sha256 != demonstrations.sha256 or found.config != config:
        raise UserError(f"{folder} was cloned of other demonstrations or settings; choose another --out or remove it")
    return found


def _described(demonstrations: Demonstrations) -> dict[str, Any]:
    return {
        "episodes": demonstrations.num_episodes,
        "timesteps": len(demonstrations),
        "sha256": demonstrations.sha256[:SHOWN_SHA],
    }


def _joined_sha256(data: Mapping[str, Mapping[str, Any]]) -> str:
    """Hash of the demonstrations of all tasks, in whatever order these were named."""
    return hashlib.sha256("\n".join(sorted(str(own["sha256"]) for own in data.values())).encode()).hexdigest()
