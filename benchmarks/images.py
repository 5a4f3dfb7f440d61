"""Images of captions: a position for each patch, or latents of the resampler; at equal minutes on equal cores.

The digits of the demo are one patch each, where there is nothing to choose. Here they are four times as large, 16
patches, and nothing else is trained on: the recipe `demo` on one thread, two runs at a time.

    python benchmarks/images.py --minutes 1 --seeds 0 1 --out runs/images
"""

import argparse
import dataclasses
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import folder_name, run_jobs

from gatito.data.domains import digits
from gatito.data.store import StoreWriter, write_mixture
from gatito.eval.agent import load_checkpoint
from gatito.eval.statistics import wilson_interval
from gatito.recipes import load_recipe
from gatito.tokenizers import TextTokenizer, Vocabulary, pair_tokens
from gatito.train.configs import Recipe
from gatito.train.trainer import train

SCALE = 4
VARIANTS: dict[str, dict[str, Any]] = {
    "a position for each patch": {},
    "1 latent, depth 0": {"resample_images": True},
    "1 latent, depth 1": {"resample_images": True, "resampler_depth": 1},
    "4 latents, depth 1": {"resample_images": True, "resampler_depth": 1, "latents": 4},
}
"""Changes to the model of the recipe, by name."""


def enlarged(image: np.ndarray) -> np.ndarray:
    """Each pixel as a square of `SCALE` pixels."""
    return np.ascontiguousarray(image.repeat(SCALE, axis=0).repeat(SCALE, axis=1))


def write_store(folder: Path) -> None:
    """The training digits, enlarged, as a store of one dataset."""
    text = TextTokenizer.load()
    vocabulary = Vocabulary(text_size=text.size)
    writer = StoreWriter(folder / "digits", vocabulary)
    for image, caption in digits.training_pairs():
        writer.write(pair_tokens(enlarged(image), caption, vocabulary, text), "captions")
    writer.close({"name": "digits", "kind": "pairs", "task": "captions:large", "source": "digits"})
    write_mixture(folder, vocabulary, text, {"digits": 1.0})


def run(out: Path, variant: str, seed: int, minutes: float) -> None:
    """Train and measure one variant, and write `out/result.json`."""
    torch.set_num_threads(1)
    recipe = load_recipe("demo")
    budget = dataclasses.replace(recipe.train, seed=seed, minutes=minutes, steps=10**6, context=256)
    shape = dataclasses.replace(recipe.model, **VARIANTS[variant])
    model, processor = load_checkpoint(train(Recipe(model=shape, train=budget), out.parent / "store", out))
    held_out = digits.held_out_pairs()
    inputs = processor(images=[enlarged(image) for image, _ in held_out])
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=10, do_sample=False)
    written = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :])
    exact = sum(text == caption for text, (_, caption) in zip(written, held_out, strict=True))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    tokens = statistics.mean(line["tokens_per_s"] for line in lines)
    (out / "result.json").write_text(json.dumps({"exact": exact, "images": len(held_out), "tokens_per_s": tokens}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--one", nargs=2, metavar=("VARIANT", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        variant, seed = arguments.one
        run(arguments.out, variant, int(seed), arguments.minutes)
        return
    if not (arguments.out / "store").is_dir():
        write_store(arguments.out / "store")
    jobs = [(variant, seed) for variant in VARIANTS for seed in arguments.seeds]
    folders = {job: arguments.out / folder_name(job) for job in jobs}
    run_jobs(folders)
    print(f"{arguments.minutes:g} minutes on one thread of {platform.machine()}, seeds {arguments.seeds}")
    print("| an image of 16 patches | thousand tokens/s | exact captions (95 %) |\n|---|---|---|")
    for variant in VARIANTS:
        results = [json.loads((folders[variant, seed] / "result.json").read_text()) for seed in arguments.seeds]
        exact, images = (sum(result[key] for result in results) for key in ("exact", "images"))
        low, high = wilson_interval(exact, images)
        tokens = statistics.mean(result["tokens_per_s"] for result in results) / 1000
        print(f"| {variant} | {tokens:.1f} | {exact / images:.3f} ({low:.3f} to {high:.3f}) |")


if __name__ == "__main__":
    main()
