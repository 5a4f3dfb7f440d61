"""What a run says of itself: progress, metrics.jsonl, and spikes.jsonl with the rows of steps that went wrong."""

import json
import math
import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from tqdm import tqdm

from gatito.data.sampler import Sampler
from gatito.data.tasks import domain_of
from gatito.errors import UserError
from gatito.train.configs import TrainConfig
from gatito.train.peak import peak_flops
from gatito.train.step import StepResult

TIMINGS = ("tokens_per_s", "timesteps_per_s", "mfu", "loading_share", "eta_s")
"""Fields of `metrics.jsonl` that the clock decides; all others are the same in the same run, but for the first line
after SIGTERM where `log_every` is above 1: it is of the steps since then."""
METRICS, SPIKES, EVALUATIONS = "metrics.jsonl", "spikes.jsonl", "evaluations.jsonl"
REMEMBERED, ENOUGH = 100, 20
"""Losses that a new one is compared with, and how few are too few."""
SPIKE = 5.0
"""Standard deviations above their mean from which on a loss is a spike."""
NAMED = 5
"""Rows that are named of a step."""


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Add a line of JSON to a file; raises `UserError` where it cannot be written."""
    try:
        with path.open("a") as file:
            file.write(json.dumps(values) + "\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; make room and continue with --train.resume auto") from None


def forget_steps(out: Path, step: int) -> None:
    """Remove the lines after `step`, which an interrupted run wrote and its continuation writes again."""
    for path in (out / METRICS, out / SPIKES, out / EVALUATIONS):
        if path.is_file():
            kept = [line for line in read_lines(path) if line["step"] <= step]
            temporary = path.with_suffix(".partial")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
            temporary.rename(path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines: a killed process may have left half of one."""
    found = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


class Watch:
    """Sums steps up to lines of `metrics.jsonl`; of the main process, silent on the others."""

    def __init__(
        self, config: TrainConfig, sampler: Sampler, accelerator: Accelerator, out: Path, first_step: int
    ) -> None:
        """Begin at a step."""
        self.config, self.sampler, self.accelerator, self.out = config, sampler, accelerator, out
        self.window: list[StepResult] = []
        self.recent: deque[float] = deque(maxlen=REMEMBERED)
        self.began, self.first_step = time.monotonic(), first_step
        self.window_began = self.began
        self.seconds_loading = self.seconds_aside = self.flops = 0.0
        """Since the last line: seconds spent waiting for data, or not training; useful FLOPs of this process."""
        self.last: dict[str, float] = {}
        self.bar = tqdm(
            total=config.steps, initial=first_step, desc="train", unit="step", disable=not accelerator.is_main_process
        )

    def step(self, step: int, result: StepResult, rate: float, elapsed: float) -> None:
        """Take the result of a step, which is then `step` steps from the start of the run."""
        self.window.append(result)
        self.bar.update()
        if self.accelerator.is_main_process:
            self._look_for_spike(step, result)
        if step % self.config.log_every == 0:
            self.log(step, rate, elapsed)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is done inside is no training, and its time not counted as such."""
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        self.seconds_aside += seconds
        self.began += seconds

    def names(self, step: int, rows: Any) -> list[str]:
        """Rows of a step, counted from the start of the stream, with their datasets; the first few of many."""
        first = (step - 1) * self.config.batch
        named = [f"{first + int(row)} ({self.sampler.dataset(first + int(row)).name})" for row in rows[:NAMED]]
        return named + ([f"{len(rows) - NAMED} more"] if len(rows) > NAMED else [])

    def log(self, step: int, rate: float, elapsed: float) -> None:
        """Write a line for the steps since the last one."""
        window, seconds = self.window, time.monotonic() - self.window_began - self.seconds_aside
        loading, flops = self.seconds_loading, self.flops
        self.window, self.window_began = [], time.monotonic()
        self.seconds_loading = self.seconds_aside = self.flops = 0.0
        if not window or not self.accelerator.is_main_process:
            return
        learned = [result for result in window if not result.is_skipped]
        values: dict[str, float] = {"step": step, "lr": rate}
        if learned:
            values["loss"] = sum(result.loss for result in learned) / len(learned)
            values["grad_norm"] = sum(result.grad_norm for result in learned) / len(learned)
        if len(learned) < len(window):
            values["skipped"] = len(window) - len(learned)
        values |= {
            **self._by_group(learned),
            **self._by_domain(step, window),
            "tokens_per_s": sum(result.tokens for result in window) / seconds,
            "timesteps_per_s": sum(result.timesteps for result in window) / seconds,
            "mfu": flops / seconds / peak_flops(self.accelerator.device, self.config.precision),
            "loading_share": loading / seconds,
            "eta_s": self._eta(step, elapsed),
        }
        append_line(self.out / METRICS, values)
        if self.config.tracker != "none":
            self.accelerator.log(values, step=step)
        self.last = values
        self._show(values)

    def _show(self, values: dict[str, float]) -> None:
        """Beside the bar: losses by group, how many actions are right, how fast it goes and how long it takes."""
        losses = {name.replace("loss/", ""): f"{values[name]:.2f}" for name in values if name.startswith("loss/")}
        shown = losses | {
            "right": f"{values.get('action_accuracy', 0.0):.0%}",
            "tokens/s": f"{values['tokens_per_s']:.0f}",
            "timesteps/s": f"{values['timesteps_per_s']:.0f}",
            "mfu": f"{values['mfu']:.0%}",
        }
        if self.config.minutes is not None:
            shown["left"] = self.bar.format_interval(values["eta_s"])
        self.bar.set_postfix(shown)

    def say_domains(self) -> None:
        """Print the losses by domain of the last line, for which there is no room beside the bar."""
        losses = {name: value for name, value in self.last.items() if name.startswith("domain_loss/")}
        if losses:
            said = ", ".join(f"{name.partition('/')[2]} {value:.3f}" for name, value in losses.items())
            tqdm.write(f"step {self.last['step']}: loss {self.last['loss']:.3f}; {said}")

    def _by_group(self, window: list[StepResult]) -> dict[str, float]:
        """Loss and accuracy by id group; the accuracy of actions is that of all groups but text."""
        values, acted, right = {}, 0, 0
        for name in window[0].groups if window else ():
            loss, targets, hits = (sum(result.groups[name][i] for result in window) for i in range(3))
            if targets:
                values[f"loss/{name}"], values[f"accuracy/{name}"] = loss / targets, hits / targets
            if name != "text":
                acted, right = acted + int(targets), right + int(hits)
        return values | ({"action_accuracy": right / acted} if acted else {})

    def _by_domain(self, step: int, window: list[StepResult]) -> dict[str, float]:
        """Loss by domain: a row of the stream is of one dataset."""
        sums: dict[str, list[float]] = {}
        first = (step - len(window)) * self.config.batch
        for i, result in enumerate(window):
            if result.is_skipped:
                continue
            for row in np.flatnonzero(result.row_targets):
                dataset = self.sampler.dataset(first + i * self.config.batch + int(row))
                domain = sums.setdefault(domain_of(dataset.metadata["task"]), [0.0, 0.0])
                domain[0] += float(result.row_loss[row])
                domain[1] += float(result.row_targets[row])
        return {f"domain_loss/{name}": loss / targets for name, (loss, targets) in sorted(sums.items())}

    def _eta(self, step: int, elapsed: float) -> float:
        """Seconds to the end, by the pace so far."""
        left = (time.monotonic() - self.began) / (step - self.first_step) * (self.config.steps - step)
        return left if self.config.minutes is None else max(0.0, min(left, 60 * self.config.minutes - elapsed))

    def _look_for_spike(self, step: int, result: StepResult) -> None:
        mean, deviation = 0.0, math.inf
        if len(self.recent) >= ENOUGH:
            mean, deviation = statistics.fmean(self.recent), statistics.pstdev(self.recent)
        if not result.is_finite:
            rows = self.names(step, result.not_finite)
            where = f"rows {', '.join(rows)}" if rows else "the gradient of the whole step"
            tqdm.write(f"step {step} skipped: its loss or gradient is not finite; {where}")
            self._write_spike(step, result, "skipped", rows)
        elif not result.is_skipped and result.loss > mean + SPIKE * deviation:
            means = result.row_loss / np.maximum(result.row_targets, 1)
            worst = np.argsort(-means, kind="stable")[:NAMED]
            self._write_spike(step, result, "spike", self.names(step, worst))
        if not result.is_skipped:
            self.recent.append(result.loss)

    def _write_spike(self, step: int, result: StepResult, kind: str, rows: list[str]) -> None:
        # JSON has no NaN
        loss, norm = (value if math.isfinite(value) else str(value) for value in (result.loss, result.grad_norm))
        usual = statistics.fmean(self.recent) if self.recent else None
        append_line(
            self.out / SPIKES,
            {"step": step, "kind": kind, "loss": loss, "usual_loss": usual, "grad_norm": norm, "rows": rows},
        )
