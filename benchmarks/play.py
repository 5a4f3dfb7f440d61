"""How soon a person sees the agent: from opening the page, and from choosing another task, to the first frame.

`gatito play` in a process of its own, on one thread, with the recipe `demo` and random weights; the page in headless
Chromium (Playwright drives the one that is installed). Each task is the one that is shown first in turn:

    python benchmarks/play.py
    python benchmarks/play.py --rounds 20 --tasks classic/cartpole
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright
from tqdm import tqdm

from gatito.data.tasks import get_task
from gatito.model import GatitoForCausalLM, GatitoProcessor
from gatito.recipes import load_recipe
from gatito.tokenizers import TextTokenizer, Vocabulary

TASKS = ("classic/cartpole", "babyai/go-to-local-s5n2", "box2d/lunar-lander", "metaworld/plate-slide")
LIMIT_S = 2.0
"""Within which the first frame is to be there."""
SWITCHES = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


def write_checkpoint(folder: Path, tasks: Sequence[str]) -> None:
    text, recipe = TextTokenizer.load(), load_recipe("demo")
    vocabulary = Vocabulary(text_size=text.size)
    model = GatitoForCausalLM(recipe.model.build(vocabulary, recipe.train.context, end_id=text.end))
    layouts = {}
    for task in tasks:
        spec = get_task(task)
        with closing(spec.make()) as env:
            layouts[task] = spec.layout(env, vocabulary, text)
    model.save_pretrained(folder)
    GatitoProcessor(model.config.trunk, text, layouts).save_pretrained(folder)


@contextmanager
def served(checkpoint: str, task: str) -> Iterator[str]:
    """The page's address."""
    command = [sys.executable, "-m", "gatito", "play", checkpoint, "--no-browser", "--task", task]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as own:
        try:
            assert own.stdout is not None
            yield own.stdout.readline().strip()
        finally:
            own.terminate()
            own.wait()


def measured(browser: Browser, address: str, other: str) -> tuple[float, float]:
    """Seconds from opening to the first frame, and from choosing another task to its first."""
    page = browser.new_page()
    began = time.perf_counter()
    page.goto(address)
    page.locator('#panes img[src^="data:image"]').wait_for()
    opened = time.perf_counter() - began
    began = time.perf_counter()
    page.select_option("#task", other)
    page.locator(f'#panes img[src^="data:image"][alt^="{other}"]').wait_for()
    chosen = time.perf_counter() - began
    page.close()
    return opened, chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        parser.error("no Chromium is installed")
    rows = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        write_checkpoint(Path(folder), arguments.tasks)
        browser = playwright.chromium.launch(executable_path=chromium, args=SWITCHES)
        for i, task in enumerate(arguments.tasks):
            other = arguments.tasks[(i + 1) % len(arguments.tasks)]
            with served(folder, task) as address:
                times = [measured(browser, address, other) for _ in tqdm(range(arguments.rounds), desc=task)]
            rows.append((task, *zip(*times, strict=True), other))
        browser.close()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {arguments.rounds} rounds; seconds, "
        "median (most)"
    )
    print(f"{'task':<28}{'opened':>16}{'then chosen':>16}")
    for task, opened, chosen, other in rows:
        cells = (f"{statistics.median(x):.2f} ({max(x):.2f})" for x in (opened, chosen))
        print(f"{task:<28}" + "".join(f"{cell:>16}" for cell in cells) + f"  {other}")
    worst = max(max(opened) for _, opened, _, _ in rows)
    print(f"slowest first frame {worst:.2f} s, asked {LIMIT_S:g} s")


if __name__ == "__main__":
    main()
