"""Captions of held-out images, answers to questions about images, and continuations of text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from gatito.data.domains import digits
from gatito.data.domains.scenes import Scene
from gatito.eval.statistics import wilson_interval
from gatito.model import GatitoForCausalLM, GatitoProcessor
from gatito.tokenizers.documents import Part, asked


@dataclass(frozen=True, kw_only=True)
class Caption:
    """What the model wrote under one held-out image."""

    image: np.ndarray
    """(H, W, C) uint8."""
    expected: str
    """The true caption."""
    written: str
    """The model's."""


def caption_images(
    model: GatitoForCausalLM, processor: GatitoProcessor, count: int | None = None, batch: int = 90
) -> list[Caption]:
    """Greedy captions of the held-out digits, all 360 unless `count` says fewer."""
    pairs = digits.held_out_pairs()[:count]
    written = write_after(model, processor, [(image,) for image, _ in pairs], "captions", batch=batch)
    return [
        Caption(image=image, expected=expected, written=text)
        for (image, expected), text in zip(pairs, written, strict=True)
    ]


def answer_scenes(model: GatitoForCausalLM, processor: GatitoProcessor, scenes: Sequence[Scene]) -> list[str]:
    """Greedy answers to the questions about scenes."""
    prompts = [asked([scene.image(), scene.question]) for scene in scenes]
    return write_after(model, processor, prompts, "answers")


def write_after(
    model: GatitoForCausalLM,
    processor: GatitoProcessor,
    prompts: Sequence[Sequence[Part]],
    words: str,
    *,
    new_tokens: int = 10,
    batch: int = 90,
) -> list[str]:
    """What the model writes after each prompt, greedily, up to its end; `words` say what, on a progress bar."""
    written: list[str] = []
    for first in tqdm(range(0, len(prompts), batch), desc=words, unit="batch"):
        inputs = processor.prompts(prompts[first : first + batch]).to(model.device)
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        written += processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :])
    return written


def caption_score(captions: list[Caption]) -> dict[str, float | int]:
    """Share of exact captions with its 95 % interval, beside always answering the commonest one."""
    exact = sum(c.written == c.expected for c in captions)
    expected = [c.expected for c in captions]
    low, high = wilson_interval(exact, len(captions))
    return {
        "images": len(captions),
        "exact": exact / len(captions),
        "ci_low": low,
        "ci_high": high,
        "commonest_answer": max(expected.count(text) for text in set(expected)) / len(captions),
    }


def continue_texts(
    model: GatitoForCausalLM, processor: GatitoProcessor, beginnings: list[str], new_tokens: int = 40, seed: int = 0
) -> list[str]:
    """Sampled continuations, each with its beginning."""
    torch.manual_seed(seed)
    inputs = processor(beginnings).to(model.device)
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=True, temperature=0.7, top_p=0.9)
    padding = (inputs["attention_mask"] == 0).sum(-1).tolist()
    return [processor.decode(row[count:]) for row, count in zip(ids, padding, strict=True)]
