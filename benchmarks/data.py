"""From episodes to batches on one thread: rates in CPU time, bytes on disk, memory, and what collecting adds.

Tokenizing is compared with what JAT does to an example before it trains (huggingface/jat at 834b49c:
`JatProcessor.__call__` in jat/processing_jat.py, called by `preprocess` of scripts/train_jat.py), written anew here:
rewards moved by a timestep, nested lists copied, images turned into float tensors in [-1, 1], all cut into pieces of
half the context (256 timesteps, 32 of images), the last of them padded with a mask. It is given lists of floats and
PIL images, as `datasets` yields them; reading, decoding and writing are not counted, and of ours neither.

Memory is that of fresh processes, once with ten times the episodes. What is compared is their peak of anonymous
memory (/proc/self/smaps_rollup, read every 5 ms): the resident size holds pages of the mapped files too, which the
kernel drops when it needs them, and so it grows with a dataset that fits. A batch of images itself is smaller where
few images are drawn again and again: it holds each patch once.

Collecting is compared with a loop that only resets, asks the bot, steps and renders: the same seeds, no noise.

    python benchmarks/data.py --rounds 5
"""

import argparse
import contextlib
import copy
import io
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from PIL import Image
from side_by_side import Step, measured

from gatito.data.checks import checked_tokens
from gatito.data.collect import collect
from gatito.data.collection import CollectConfig
from gatito.data.episode import Episode
from gatito.data.sampler import Sampler
from gatito.data.store import Store, StoreWriter, open_store, write_mixture
from gatito.data.tasks import TaskSpec, get_task, matching
from gatito.tokenizers import Layout, TextTokenizer, Vocabulary
from gatito.tokenizers.trunk import Trunk

STATES = (spaces.Box(-np.inf, np.inf, (17,), np.float32), spaces.Box(-1, 1, (6,), np.float32))
"""HalfCheetah, where the public reproductions were measured."""
IMAGES = (spaces.Box(0, 255, (96, 80, 3), np.uint8), spaces.Discrete(18))
"""23 040 bytes; JAT's four stacked frames of 84 x 84 pixels are 28 224."""
JAT_LENGTHS = {"states": 256, "images": 32}
EPISODES = {"states": (100, 1000), "images": (10, 300)}
"""Episodes of the stores, and timesteps of each."""
CONTEXT, ROWS = 1024, 16
TRUNKS: dict[str, dict[str, Any]] = {
    "flat": {},
    "1 latent, actions decoded": {"latents": 1, "decoded_actions": True},
}
TASKS = {"babyai/go-to-local-s5n2": 1000, "babyai/go-to-local": 500, "babyai/go-to": 60}
"""Levels of short, middling and long episodes, and how many are collected."""
LOOPING = ("babyai/go-to-imp-unlock", "babyai/synth-s5r2", "babyai/unlock-to-unlock")
"""Levels on which the bot loops for ever on some seeds: `collect` ends those by an alarm, the bare bot does not."""


def layout_of(kind: str) -> Layout:
    text = TextTokenizer.load()
    space, actions = STATES if kind == "states" else IMAGES
    return Layout.from_spaces(space, actions, vocabulary=Vocabulary(text_size=text.size), text=text)


def episodes(kind: str, count: int, T: int) -> Iterator[Episode]:
    """Normal observations and uniform actions, or images whose upper half is noise."""
    rng = np.random.default_rng(0)
    for index in range(count):
        if kind == "states":
            observations: Any = rng.normal(size=(T, 17)).astype(np.float32)
            actions: Any = rng.uniform(-1, 1, (T, 6)).astype(np.float32)
        else:
            observations = np.full((T, 96, 80, 3), 40, np.uint8)
            observations[:, :48] = rng.integers(256, size=(T, 48, 80, 3), dtype=np.uint8)
            actions = rng.integers(18, size=T)
        yield Episode(
            task=kind, id=index, agent="expert", observations=observations, actions=actions,
            rewards=rng.normal(size=T), targets=np.ones(T, np.bool_),
        )  # fmt: skip


def write_store(folder: Path, kind: str, scale: int = 1) -> Store:
    """A store of one dataset, written an episode at a time."""
    layout = layout_of(kind)
    count, T = EPISODES[kind]
    with StoreWriter(folder / kind, layout.vocabulary) as writer:
        for episode in episodes(kind, scale * count, T):
            writer.write(checked_tokens(layout, episode, where=kind)[0], episode.agent)
        writer.close({"name": kind, "source": kind, "kind": "control", "task": kind, "layout": layout.to_json()})
    write_mixture(folder, layout.vocabulary, layout.text, {kind: 1.0})
    return open_store(folder, verify=False)


def timed(work: Callable[[], object], units: float, at_least_s: float = 0.1) -> Step:
    """Units of work per second of CPU time, repeated for at least so long."""

    def step() -> float:
        times, began = 0, time.process_time()
        while times == 0 or time.process_time() - began < at_least_s:
            work()
            times += 1
        return times * units / (time.process_time() - began)

    return step


# Tokenizing


def jat_example(episode: Episode) -> dict[str, list[Any]]:
    """An episode as a row of JAT's dataset."""
    observations = episode.observations
    if observations.dtype == np.uint8:
        shown = {"image_observations": [Image.fromarray(image) for image in observations]}
        return {**shown, "discrete_actions": episode.actions.tolist(), "rewards": episode.rewards.tolist()}
    seen = {"continuous_observations": observations.tolist(), "continuous_actions": episode.actions.tolist()}
    return {**seen, "rewards": episode.rewards.tolist()}


def normalised(image: Image.Image) -> torch.Tensor:
    """Pixels (3, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return (pixels.float().div(255) - 0.5) / 0.5


def jat_like(example: dict[str, list[Any]], length: int) -> dict[str, Any]:
    """Pieces of `length` timesteps of every column, the last one padded with its first element, and a mask."""
    columns: dict[str, list[Any]] = {}
    for name, values in (example | {"rewards": [0.0, *example["rewards"][:-1]]}).items():
        if name == "image_observations":
            columns[name] = [normalised(image) for image in values]
        else:
            columns[name] = list(map(float, values)) if name == "rewards" else copy.deepcopy(values)
    encoding: dict[str, Any] = {}
    for name, values in columns.items():
        pieces = [values[start : start + length] for start in range(0, len(values), length)]
        missing = [length - len(piece) for piece in pieces]
        encoding[name] = [[*piece, *[piece[0]] * n] for piece, n in zip(pieces, missing, strict=True)]
        encoding["attention_mask"] = [[1] * (length - n) + [0] * n for n in missing]
    if "image_observations" in encoding:
        encoding["image_observations"] = torch.stack([torch.stack(rows) for rows in encoding["image_observations"]])
    return {**encoding, "loss_weight": [1.0] * len(encoding["attention_mask"])}


def tokenizing(kind: str, T: int, rounds: int) -> None:
    layout, episode = layout_of(kind), next(episodes(kind, 1, T))
    example, length = jat_example(episode), JAT_LENGTHS[kind]
    steps = {
        "`Layout.episode_tokens`": timed(lambda: layout.episode_tokens(episode.observations, episode.actions), T),
        "the same, checked": timed(lambda: checked_tokens(layout, episode, where="episode"), T),
        "JAT-like": timed(lambda: jat_like(example, length), T),
    }
    rates = measured(steps, rounds)
    for name, rate in rates.items():
        print(f"| {kind}, {name} | {rate:,.0f} | {rate / rates['JAT-like']:.1f} |")


# Random windows


def batches(store: Store, changes: dict[str, Any], count: int, rows: int = ROWS) -> Callable[[], None]:
    """Draws the next batches of a stream; `changes` are those of the trunk."""
    trunk = Trunk(vocabulary=store.vocabulary, **changes)
    sampler, drawn = Sampler(store=store, context=CONTEXT, trunk=trunk, seed=0), itertools.count(0, rows)

    def draw() -> None:
        for _ in range(count):
            sampler.batch(next(drawn), rows)

    return draw


def windows(states: Store, images: Store, rounds: int) -> None:
    print(f"\nRandom rows of {CONTEXT} positions, a quarter with a prompt, {ROWS} in a batch, from a warm page cache")
    count = 10
    steps = {name: timed(batches(states, changes, count), count * ROWS * CONTEXT) for name, changes in TRUNKS.items()}
    rates = measured(steps, rounds)
    print("| states, trunk | positions/s | tokens/s |\n|---|---|---|")
    per_timestep = layout_of("states").num_observation_tokens + layout_of("states").num_action_tokens
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rate * (1 if name == 'flat' else per_timestep):,.0f} |")

    count = 4
    sampler = Sampler(store=images, context=CONTEXT, trunk=Trunk(vocabulary=images.vocabulary), seed=0)
    sampled = [sequence.patches for i in range(count * ROWS) for sequence in sampler.row(i)]
    size, copied = sum(patches.nbytes for patches in sampled), np.empty_like(np.concatenate(sampled))

    def plain_copy() -> None:
        start = 0
        for patches in sampled:
            np.copyto(copied[start : start + len(patches)], patches)
            start += len(patches)

    ours = timed(lambda: [sampler.batch(i * ROWS, ROWS) for i in range(count)], size / 1e9)
    rates = measured({"ours": ours, "copy": timed(plain_copy, size / 1e9)}, rounds)
    print("| images, flat | GB/s of patches | plain copy of them | share |\n|---|---|---|---|")
    print(f"| batches | {rates['ours']:.2f} | {rates['copy']:.2f} | {rates['ours'] / rates['copy']:.2f} |")


# Bytes and memory


def bytes_on_disk(stores: dict[str, Store]) -> None:
    print("\n| on disk | bytes a timestep | raw arrays | ratio |\n|---|---|---|---|")
    for kind, raw in (("states", 4 * (17 + 6 + 1)), ("images", 96 * 80 * 3 + 8 + 4)):
        dataset = stores[kind].datasets[0]
        size = sum(path.stat().st_size for path in dataset.folder.glob("*.bin")) / dataset.num_timesteps
        print(f"| {kind} | {size:.0f} | {raw} | {size / raw:.2f} |")


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


@contextlib.contextmanager
def watched(peaks: dict[str, int], name: str) -> Iterator[None]:
    """Note the peak of anonymous memory inside the block, above what was there before."""
    before, done = anonymous_bytes(), threading.Event()
    peaks[name] = 0

    def watch() -> None:
        while not done.wait(0.005):
            peaks[name] = max(peaks[name], anonymous_bytes() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def one_peak(kind: str, scale: int) -> None:
    """Build a store and draw from it; prints the peaks of anonymous memory and the resident one."""
    peaks: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        layout_of(kind)
        with watched(peaks, "build"):
            store = write_store(Path(folder), kind, scale)
        with watched(peaks, "sample"):
            for changes in TRUNKS.values():
                batches(store, changes, 10, ROWS if kind == "states" else 1)()
    print(json.dumps(peaks | {"resident": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))


def memory() -> None:
    if not Path("/proc/self/smaps_rollup").is_file():
        print("\nPeak memory: /proc/self/smaps_rollup is missing, not measured")
        return
    print("\n| peak memory, MiB | states | tenfold | images | tenfold |\n|---|---|---|---|---|")
    found: list[dict[str, int]] = []
    for kind in EPISODES:
        for scale in (1, 10):
            command = [sys.executable, __file__, "--peak", kind, str(scale)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(json.loads(output.splitlines()[-1]))
    titles = {
        "build": "anonymous, building",
        "sample": "anonymous, sampling",
        "resident": "resident, with the interpreter, libraries and mapped files",
    }
    for name, title in titles.items():
        print(f"| {title} | {' | '.join(f'{peaks[name] / 2**20:.0f}' for peaks in found)} |")


# Collecting


def play(spec: TaskSpec, env: gym.Env[Any, Any], count: int) -> None:
    """Episodes of the bot, seen and forgotten."""
    for seed in range(count):
        observation, _ = env.reset(seed=seed)
        policy, ended = spec.expert(env), False
        while not ended:
            observation, _, terminated, truncated, _ = env.step(policy(observation))
            ended = terminated or truncated


def collecting(title: str, tasks: Sequence[str], count: int, rounds: int) -> None:
    """Episodes per second of CPU time of one process, the files that `collect` writes included."""
    specs = [get_task(task) for task in tasks]

    def alone() -> None:
        for spec in specs:
            env = spec.make()  # `collect` too builds it once in a process
            play(spec, env, count)
            env.close()

    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stderr(io.StringIO()):
        folders = (Path(root) / str(k) for k in itertools.count())
        config = CollectConfig(episodes=count, agents={"expert": 1.0}, processes=1)
        number = count * len(specs)
        steps = {
            "alone": timed(alone, number),
            "collected": timed(lambda: collect(specs, next(folders), config), number),
        }
        rates = measured(steps, rounds)
    share = rates["collected"] / rates["alone"]
    print(f"| {title} | {rates['alone']:.1f} | {rates['collected']:.1f} | {share:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only-collecting", action="store_true")
    parser.add_argument("--peak", nargs=2, metavar=("KIND", "SCALE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        return one_peak(arguments.peak[0], int(arguments.peak[1]))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, 1 thread, numpy {np.__version__}")
    if not arguments.only_collecting:
        print("\n| tokenizing | timesteps/s | against JAT-like |\n|---|---|---|")
        tokenizing("states", 1000, arguments.rounds)
        tokenizing("images", 320, arguments.rounds)
        with tempfile.TemporaryDirectory() as folder:
            stores = {kind: write_store(Path(folder) / kind, kind) for kind in EPISODES}
            windows(stores["states"], stores["images"], arguments.rounds)
            bytes_on_disk(stores)
        memory()
    print("\n| collecting | alone, episodes/s | collected | share |\n|---|---|---|---|")
    for task, count in TASKS.items():
        collecting(task, [task], count, arguments.rounds)
    levels = [task for task in matching(["babyai/*", "!babyai/*-symbolic"]) if task not in LOOPING]
    collecting(f"{len(levels)} levels of BabyAI", levels, 50, min(arguments.rounds, 2))


if __name__ == "__main__":
    main()
