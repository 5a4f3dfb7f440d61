"""Importing a dataset of images in JAT's layout, against reading it with `datasets` row by row as Python lists.

Both decode every picture of a generated dataset: the import into a whole Minari dataset on disk, the other into lists
that are dropped. In turn, on one thread, CPU time of each and the wall clock; beside it the limit, decoding the
pictures alone:

    python benchmarks/imports.py --rounds 5        about 2 minutes
"""

import argparse
import io
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from gatito.data.formats.importing import import_episodes
from gatito.data.formats.source import ImportConfig


def frame(rng: np.random.Generator, side: int, channels: int) -> np.ndarray:
    """A picture as a game draws it: a background, and a few things of one colour."""
    pixels = np.full((side, side, channels), rng.integers(256), np.uint8)
    for _ in range(12):
        y, x, height, width = rng.integers(0, side, 2).tolist() + rng.integers(2, side // 4, 2).tolist()
        pixels[y : y + height, x : x + width] = rng.integers(0, 256, channels)
    return pixels


def write(folder: Path, episodes: int, timesteps: int, side: int, channels: int) -> Path:
    """A dataset of JAT's columns, written by `datasets`."""
    rng = np.random.default_rng(0)
    features = datasets.Features(
        {
            "image_observations": datasets.List(datasets.Image()),
            "discrete_actions": datasets.List(datasets.Value("int64")),
            "rewards": datasets.List(datasets.Value("float32")),
        }
    )
    rows = {
        "image_observations": [[frame(rng, side, channels) for _ in range(timesteps)] for _ in range(episodes)],
        "discrete_actions": [rng.integers(0, 6, timesteps).tolist() for _ in range(episodes)],
        "rewards": [rng.normal(size=timesteps).tolist() for _ in range(episodes)],
    }
    folder.mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    return folder


def read_as_lists(folder: Path) -> None:
    """Each row as `datasets` gives it, its pictures as nested lists."""
    rows = datasets.Dataset.from_parquet(str(folder / "train.parquet"), cache_dir=str(folder / "cache"))
    for row in rows:
        [np.asarray(picture).tolist() for picture in row["image_observations"]]


def read_as_pictures(folder: Path) -> None:
    """Each row as `datasets` gives it, its pictures as arrays: what costs no lists."""
    rows = datasets.Dataset.from_parquet(str(folder / "train.parquet"), cache_dir=str(folder / "cache"))
    for row in rows:
        [np.asarray(picture) for picture in row["image_observations"]]


def decode(folder: Path) -> None:
    """The pictures alone, by PIL from their bytes."""
    column = pq.read_table(folder / "train.parquet", columns=["image_observations"]).column(0)
    for row in column:
        for content in row.values.field("bytes"):
            np.asarray(Image.open(io.BytesIO(content.as_py())))


def imported(folder: Path) -> None:
    """The import, its dataset on disk."""
    with tempfile.TemporaryDirectory() as out:
        import_episodes(ImportConfig(source=f"hf:{folder}", task="imported/bench"), Path(out) / "dataset")


RUNS: dict[str, Callable[[Path], None]] = {
    "gatito data import": imported,
    "datasets, rows as Python lists": read_as_lists,
    "datasets, rows as pictures": read_as_pictures,
    "limit: PIL's decoding alone": decode,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=6)
    parser.add_argument("--timesteps", type=int, default=200, help="of an episode")
    parser.add_argument("--side", type=int, default=84)
    parser.add_argument("--channels", type=int, default=4, help="4 are the stacked frames of an Atari game")
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    total = arguments.episodes * arguments.timesteps
    print(
        f"{platform.processor() or platform.machine()}, one thread; {arguments.episodes} episodes of "
        f"{arguments.timesteps} pictures of {arguments.side}x{arguments.side}x{arguments.channels}"
    )
    spent: dict[str, list[float]] = {name: [] for name in RUNS}
    with tempfile.TemporaryDirectory() as place:
        sizes = (arguments.episodes, arguments.timesteps, arguments.side, arguments.channels)
        folder = write(Path(place) / "jat", *sizes)
        for name, run in tqdm([*RUNS.items()] * (arguments.rounds + 1), desc="rounds", unit="run"):
            began = time.process_time()
            run(folder)
            spent[name].append(time.process_time() - began)
    base = statistics.median(spent["datasets, rows as Python lists"][1:])
    print("\n| | timesteps/s | rate against Python lists |\n|---|---|---|")
    for name, times in spent.items():
        middle = statistics.median(times[1:])  # the first is not counted: it fills caches
        print(f"| {name} | {total / middle:.0f} | {base / middle:.1f} |")


if __name__ == "__main__":
    main()
