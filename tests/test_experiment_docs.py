"""What docs/experiments says is what `results.json` beside it has."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parent.parent / "docs/experiments"
NUMBER = r"-?\d+\.\d+"
ESTIMATE = re.compile(rf"({NUMBER}) \(({NUMBER}) to ({NUMBER})\)")


def estimates_of(value: Any) -> Iterator[tuple[float, float, float]]:
    """Every mean with its interval in the JSON of an experiment, in numbers and in words."""
    if isinstance(value, dict):
        if isinstance(value.get("low"), float):
            yield value.get("mean", value.get("power")), value["low"], value["high"]
        for inner in value.values():
            yield from estimates_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from estimates_of(inner)
    elif isinstance(value, str):
        for mean, low, high in ESTIMATE.findall(value):
            yield float(mean), float(low), float(high)


def written(found: tuple[float, float, float], digits: int) -> tuple[float, ...]:
    """As a page has it; -0.00 is 0."""
    return tuple(round(number, digits) + 0.0 for number in found)


@pytest.mark.parametrize("page", [page.name for page in sorted(DOCS.glob("*.md"))])
def test_a_page_has_no_figure_that_its_experiment_did_not_measure(page: str) -> None:
    own = "" if page == "README.md" else page.removesuffix(".md")  # which has figures of all
    sources = [json.loads(path.read_text()) for path in DOCS.glob(f"{own}*.json")]
    measured = [e for source in sources for key in ("findings", "summary") for e in estimates_of(source[key])]
    if not own:
        measured += estimates_of((DOCS.parent.parent / "README.md").read_text())  # of `gatito demo`
    # What is lost without a choice may be told as what it is worth.
    measured += [(-mean, -high, -low) for mean, low, high in measured]
    told = ESTIMATE.findall((DOCS / page).read_text())
    assert len(told) > 5
    wrong = []
    for figure in told:
        digits = len(figure[0].partition(".")[2])
        if tuple(map(float, figure)) not in {written(e, digits) for e in measured}:
            wrong.append(figure)
    assert not wrong
