"""Collects a few episodes of every registered task with every source agent, checks and tokenizes them.

    python benchmarks/every_task.py --out every-task --episodes 6

Prints a table by domain and writes `OUT/every_task.json`, a row per task. Tasks whose extra is not installed are left
out. Run again, it continues.
"""

import argparse
import json
import os
import platform
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gatito.data.build import build, open_layout
from gatito.data.collect import collect
from gatito.data.collection import CollectConfig
from gatito.data.minari_episodes import open_minari
from gatito.data.mixture import DatasetConfig, MixtureConfig
from gatito.data.survey import survey
from gatito.data.tasks import registry
from gatito.tokenizers import TextTokenizer, Vocabulary


def measured(path: Path, text: TextTokenizer) -> dict[str, Any]:
    """A row of the table: what a dataset holds."""
    source = open_minari(path)
    seen = survey(source, open_layout(source, Vocabulary(text_size=text.size), text), 1024)
    assert not seen.num_errors, seen.findings
    scores = {a: float(seen.reference.score(r).mean()) if seen.reference else None for a, r in seen.by_agent()}
    return {
        "task": source.task,
        "episodes": len(seen.returns),
        "timesteps": sum(seen.lengths),
        "tokens": seen.tokens,
        "longest_timestep": seen.longest,
        "score": scores,
        "warnings": sorted({finding.kind for finding in seen.findings}),
    }


def main() -> None:
    """Collect, check, tokenize, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("every-task"))
    parser.add_argument("--episodes", type=int, default=6)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    here = [task for task, spec in registry().items() if spec.missing_extra() is None]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    print(f"{len(here)} of {len(registry())} tasks are installed")
    config = CollectConfig(
        episodes=arguments.episodes, agents={"expert": 1, "noisy": 1, "random": 1}, processes=arguments.processes
    )
    began = time.monotonic()
    paths = collect(here, arguments.out / "datasets", config)
    collected, text = time.monotonic(), TextTokenizer.load()
    rows = [measured(path, text) for path in tqdm(paths, desc="check", unit="dataset")]
    checked = time.monotonic()
    pattern = f"minari:{arguments.out}/datasets/*/*/{config.name}"
    mixture = MixtureConfig(datasets=[DatasetConfig(source=pattern, expert_filter=None)])
    store = build(mixture, arguments.out / "store")
    built = time.monotonic()
    (arguments.out / "every_task.json").write_text(json.dumps(rows, indent=1))
    domains = defaultdict(list)
    for row in rows:
        domains[row["task"].split("/")[0]].append(row)
    print("| domain | tasks | episodes | timesteps | tokens | longest timestep | expert | noisy | random |")
    print("|---|---|---|---|---|---|---|---|---|")
    for domain, found in domains.items():
        sums = " | ".join(f"{sum(row[key] for row in found):,}" for key in ("episodes", "timesteps", "tokens"))
        means = [[row["score"].get(a) for row in found] for a in ("expert", "noisy", "random")]
        known = [[score for score in agent if score is not None] for agent in means]
        scores = " | ".join(f"{np.mean(agent):.2f}" if agent else "-" for agent in known)
        longest = max(row["longest_timestep"] for row in found)
        print(f"| {domain} | {len(found)} | {sums} | {longest} | {scores} |")
    seconds = {"collect": collected - began, "check": checked - collected, "tokenize": built - checked}
    size = sum(path.stat().st_size for path in store.folder.rglob("*") if path.is_file())
    print(
        f"{len(rows)} tasks in {len(domains)} domains, all tokenized: {size / 1e6:.0f} MB; "
        + ", ".join(f"{name} {value / 60:.1f} min" for name, value in seconds.items())
    )


if __name__ == "__main__":
    main()
