"""Documents at the rate of what reads them: texts against sentencepiece alone, captioned images against PIL alone.

All of it in turn. Texts: from documents in memory to the files of a dataset on one thread, against sentencepiece's
own batch encode of the same documents, in CPU time. Images: from a folder of photographs with metadata.jsonl to the
files of a dataset, against PIL's bare decoding of the same files to arrays; within the cap, and scaled down to it.
They are decoded by two threads: wall clock is what a user waits, CPU time what both cores do for it.

    python benchmarks/words.py --rounds 7
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import sentencepiece
from PIL import Image
from side_by_side import measured

from gatito.data.documents import DocumentConfig, open_documents, write_documents
from gatito.tokenizers import TextTokenizer, Vocabulary

ASKED = 0.8
NUM_IMAGES = 150
SIZES = {"photographs of 224 x 224": (224, 224), "photographs of 640 x 480": (640, 480)}
"""Width and height of JPEG files."""


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """Smooth shapes with fine grain, which JPEG compresses about as much as photographs."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = rng.normal(0, 6, (height, width, 1))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))


def write_folder(folder: Path, size: tuple[int, int]) -> list[Path]:
    """A folder of captioned images, as `captions:` reads it."""
    folder.mkdir()
    files = [folder / f"{i}.jpg" for i in range(NUM_IMAGES)]
    for i, file in enumerate(files):
        photograph(*size, seed=i).save(file, quality=90)
    rows = [{"file_name": file.name, "text": f"photograph number {i}"} for i, file in enumerate(files)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return files


def rate_of(work: Callable[[], object], amount: int, clock: Callable[[], float] = time.process_time) -> float:
    """How much per second, by default of CPU time of this process."""
    before = clock()
    work()
    return amount / (clock() - before)


class Written:
    """Writes the dataset of a source, each time into a folder of its own."""

    def __init__(self, root: Path, text: TextTokenizer) -> None:
        self.root, self.text, self.times = root / "written", text, 0
        self.vocabulary = Vocabulary(text_size=text.size)

    def __call__(self, source: str, threads: int = 2) -> None:
        """Write it anew."""
        config = DocumentConfig(threads=threads)
        self.times += 1
        folder = self.root / str(self.times)
        write_documents(source, folder, self.vocabulary, self.text, config, {"name": source})


def text_rates(write: Written, text: TextTokenizer, rounds: int) -> tuple[dict[str, float], int]:
    """Tokens per second of both, and how many tokens there are."""
    documents = [part.text for d in open_documents("text:python-docs").documents() for part in d.texts]
    processor = sentencepiece.SentencePieceProcessor(model_proto=text.model)
    tokens = sum(map(len, processor.encode(documents, num_threads=1)))
    rates = measured(
        {
            "gatito": lambda: rate_of(lambda: write("text:python-docs", threads=1), tokens),
            "alone": lambda: rate_of(lambda: processor.encode(documents, num_threads=1), tokens),
        },
        rounds,
    )
    return rates, tokens


def image_rates(root: Path, write: Written, size: tuple[int, int], rounds: int) -> dict[str, dict[str, float]]:
    """Images per second of both, by wall clock and by CPU time."""
    folder = root / f"{size[0]}x{size[1]}"
    files = write_folder(folder, size)
    clocks = {"wall clock": time.perf_counter, "CPU time": time.process_time}

    def decode() -> None:
        for file in files:
            with Image.open(file) as image:
                np.asarray(image.convert("RGB"))

    def rate(work: Callable[[], object], clock: Callable[[], float]) -> Callable[[], float]:
        return lambda: rate_of(work, len(files), clock)

    return {
        name: measured(
            {"gatito": rate(lambda: write(f"captions:{folder}"), clock), "alone": rate(decode, clock)}, rounds
        )
        for name, clock in clocks.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    text = TextTokenizer.load()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write = Written(root, text)
        rates, tokens = text_rates(write, text, arguments.rounds)
        rows = [(f"texts, {tokens} tokens, CPU time", "tokens/s", "sentencepiece's batch encode", rates)]
        for what, size in SIZES.items():
            for clock, rates in image_rates(root, write, size, arguments.rounds).items():
                rows.append((f"{what}, captioned, {clock}", "images/s", "PIL's bare decoding", rates))
    print(
        f"{os.cpu_count()} cores of {platform.machine()}, median of {arguments.rounds} rounds; sentencepiece "
        f"{sentencepiece.__version__}, Pillow {PIL.__version__}; the limits are the encoder and, of small images, "
        "SHA-256 and copies of their pixels beside the decoder"
    )
    print("| from source to store | gatito | beside | ratio (asked) |\n|---|---|---|---|")
    for what, unit, beside, rates in rows:
        ratio = rates["gatito"] / rates["alone"]
        print(f"| {what} | {rates['gatito']:.0f} {unit} | {rates['alone']:.0f}: {beside} | {ratio:.2f} ({ASKED}) |")


if __name__ == "__main__":
    main()
