"""The training loop, on Accelerate."""

import contextlib
import importlib.util
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast, set_seed
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from gatito.data.checks import check_store
from gatito.data.describe import MANY, by_domain, store_table
from gatito.data.packing import Batch
from gatito.data.publish import check_writable
from gatito.data.sampler import Sampler, smallest_observation
from gatito.data.store import Store, open_store
from gatito.errors import UserError
from gatito.model import GatitoForCausalLM
from gatito.model.loss import predicting
from gatito.train.card import model_card, processor_of
from gatito.train.checkpoint import (
    TrainingState,
    list_checkpoints,
    load_newest,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from gatito.train.configs import Recipe, TrainConfig
from gatito.train.info import expected_epochs
from gatito.train.settings import check_same_settings, run_settings

MAX_SKIPPED = 3
"""Steps in a row with a loss or gradient that is not finite, before the run aborts."""


class MicroBatches(Dataset[Batch]):
    """Micro-batch k of one process: rows of the stream that no other process or step has."""

    def __init__(self, sampler: Sampler, config: TrainConfig, process: int, processes: int) -> None:
        """Process `process` of `processes` takes its share of each step's rows."""
        self.sampler, self.config, self.process = sampler, config, process
        self.size = config.batch // config.accumulation // processes

    def __len__(self) -> int:
        return self.config.steps * self.config.accumulation

    def __getitem__(self, k: int) -> Batch:
        step, micro = divmod(k, self.config.accumulation)
        rows_per_micro = self.config.batch // self.config.accumulation
        first = step * self.config.batch + micro * rows_per_micro + self.process * self.size
        return self.sampler.batch(first, self.size)


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """Linear warm-up, then a cosine from the peak to `final_lr` of it; `progress` is in [0, 1]."""
    if step < config.warmup:
        return config.first_lr + (config.lr - config.first_lr) * (step + 1) / config.warmup
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    return config.lr * (config.final_lr + (1.0 - config.final_lr) * cosine)


def build_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW; matrices decay, embeddings, norms and biases do not."""
    decay: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    tables = {module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    for parameter in model.parameters():
        (decay if parameter.ndim >= 2 and parameter not in tables else rest).append(parameter)
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=1e-8, fused=True)


def train(recipe: Recipe, data: Path, out: Path) -> Path:
    """Train a recipe on a store and return the last checkpoint.

    Raises `UserError` for data that is damaged or does not fit, for an `out` that holds another run, and for a
    loss that stays not finite.
    """
    config = recipe.train
    _check_tracker(config)
    check_writable(out)
    store = open_store(data)
    check_store(store)
    shape = recipe.model.build(store.vocabulary, config.context, store.text.end)
    sampler = Sampler(
        store=store,
        context=config.context,
        trunk=shape.trunk,
        seed=config.seed,
        prompt_share=config.prompt_share,
        predict_observations=config.predict_observations,
    )
    newest = _newest(config, out)
    accelerator = Accelerator(
        # Without it torchrun's processes on CPUs would each train alone.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=config.precision,
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir=str(out),
        step_scheduler_with_optimizer=False,
        # The rows of one process may hold no image, and so leave the patch embedding without a gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if config.batch % (config.accumulation * accelerator.num_processes):
        raise UserError(
            f"--train.batch {config.batch} does not divide by {accelerator.num_processes} processes "
            f"x {config.accumulation} accumulation steps"
        )
    settings = run_settings(recipe, store)
    if newest:
        check_same_settings(newest[1].settings, settings, newest[0])
    set_seed(config.seed)
    plain = GatitoForCausalLM(shape)
    if newest:
        # Copied: weights mapped from a file lie 8 bytes off the alignment of torch's own, and CPU matrix products
        # of them differ in the last bit.
        plain.load_state_dict(GatitoForCausalLM.from_pretrained(newest[0]).state_dict())
    optimizer = build_optimizer(plain, config)
    model, prepared = accelerator.prepare(plain, optimizer)
    plain = accelerator.unwrap_model(model)
    if newest:
        restore_optimizer(plain, optimizer, newest[1].optimizer)
    loop = _Loop(recipe, store, sampler, accelerator, model, plain, prepared, out, settings)
    try:
        return loop.run(newest[1].step if newest else 0)
    except RuntimeError as error:
        lost = re.match(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\)", str(error))
        if lost is None:
            raise
        raise UserError(
            f"the data-loading worker of process id {lost.group(1)} died ({error}); continue the run with "
            "--train.resume auto, and lower --train.workers if memory was short"
        ) from None


class _Loop:
    """The state of one run."""

    def __init__(
        self,
        recipe: Recipe,
        store: Store,
        sampler: Sampler,
        accelerator: Accelerator,
        model: torch.nn.Module,
        plain: GatitoForCausalLM,
        optimizer: Any,
        out: Path,
        settings: dict[str, Any],
    ) -> None:
        self.config, self.recipe, self.store, self.sampler = recipe.train, recipe, store, sampler
        self.accelerator, self.model, self.plain, self.optimizer = accelerator, model, plain, optimizer
        self.out, self.settings = out, settings
        self.processor = processor_of(store, sampler.trunk)
        self.seconds_loading = 0.0

    def run(self, first_step: int) -> Path:
        config, accelerator = self.config, self.accelerator
        if first_step >= config.steps:
            return list_checkpoints(self.out)[-1]
        self.out.mkdir(parents=True, exist_ok=True)
        if accelerator.is_main_process:
            if first_step == 0:
                _mention_spare_latents(self.sampler)
                self._describe_data()
            _forget_steps(self.out / "metrics.jsonl", first_step)
        if config.tracker != "none":
            accelerator.init_trackers("gatito", config={k: str(v) for k, v in self.settings.items()})
        dataset = MicroBatches(self.sampler, config, accelerator.process_index, accelerator.num_processes)
        remaining = range(first_step * config.accumulation, len(dataset))
        loader = DataLoader(
            dataset, batch_size=None, sampler=remaining, num_workers=config.workers, generator=torch.Generator()
        )
        micro_batches = iter(loader)
        began, skipped, step, path = time.monotonic(), 0, first_step, None
        window: list[dict[str, float]] = []
        rate = config.lr
        window_began = began
        self.model.train()
        bar = tqdm(
            total=config.steps, initial=first_step, desc="train", unit="step", disable=not accelerator.is_main_process
        )
        while step < config.steps:
            elapsed = self._elapsed(began)
            progress = (step - config.warmup) / max(1, config.steps - config.warmup)
            if config.minutes is not None:
                progress = max(progress, elapsed / (60 * config.minutes))
                if elapsed > 60 * config.minutes and step > first_step:
                    break
            rate = learning_rate(config, step, progress)
            # The generators are seeded anew, so that stochastic depth does not depend on an interruption.
            torch.manual_seed(_step_seed(config.seed, step, accelerator.process_index))
            metrics = self._step([self._load(micro_batches) for _ in range(config.accumulation)], rate)
            step += 1
            skipped = 0 if math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"]) else skipped + 1
            if skipped == MAX_SKIPPED:
                rows = f"{(step - MAX_SKIPPED) * config.batch} to {step * config.batch - 1}"
                raise UserError(f"the loss is not finite at step {step} (stream rows {rows}); lower --train.lr")
            window.append(metrics)
            bar.update()
            if step % config.log_every == 0:
                self._log(step, rate, window, time.monotonic() - window_began, bar)
                window, window_began = [], time.monotonic()
            if step % config.save_every == 0 and step < config.steps:
                path = self._save(step)
        if window and step % config.log_every:
            self._log(step, rate, window, time.monotonic() - window_began, bar)
        bar.close()
        path = self._save(step)
        if accelerator.num_processes > 1:
            # gloo's threads drop the tensors of the last collective under the GIL, which torch keeps while it
            # joins them to end the process group: without this pause a run now and then hangs after its last step.
            time.sleep(0.2)
        accelerator.end_training()
        return path

    def _describe_data(self) -> None:
        """Say what is trained on, and how often."""
        store, config = self.store, self.config
        groups = {d.name: [d] for d in store} if len(store.datasets) < MANY else by_domain(store.datasets)
        epochs = expected_epochs(store, self.plain.config, config.steps * config.batch)
        print(store_table(store, groups, epochs))
        if config.minutes is not None:
            print(
                f"epochs are those of all {config.steps} steps; --train.minutes {config.minutes:g} may end it sooner"
            )

    def _elapsed(self, began: float) -> float:
        """Seconds by the clock of the main process, for all of them."""
        seconds = torch.tensor(time.monotonic() - began, dtype=torch.float32, device=self.accelerator.device)
        return float(broadcast(seconds))

    def _load(self, micro_batches: Any) -> Batch:
        began = time.monotonic()
        batch: Batch = next(micro_batches)
        self.seconds_loading += time.monotonic() - began
        return batch.to(self.accelerator.device)

    def _step(self, batches: list[Batch], rate: float) -> dict[str, float]:
        """One optimizer step; the loss is normalised by the number of targets of all processes and micro-batches."""
        accelerator = self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        count = torch.stack([_num_targets(batch) for batch in batches]).sum()
        all_targets = accelerator.reduce(count, "sum")
        total = all_targets.clamp(min=1)
        sums: dict[str, float] = {"tokens": float(sum(b.num_tokens for b in batches)) * accelerator.num_processes}
        groups = list(self.store.vocabulary.groups)
        losses = torch.zeros((), device=accelerator.device)
        by_group = torch.zeros((3, len(groups)), device=accelerator.device)
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            with accelerator.autocast(), _synchronised(accelerator, self.model, last):
                targets = self.model(**batch.tensors()).targets
                loss = torch.stack(list(targets.loss_sum.values())).sum() / total
                # Data-parallel gradients are averaged over the processes; the loss is a sum over them.
                accelerator.backward(loss * accelerator.num_processes)
            losses = losses + loss.detach()
            counted = (targets.loss_sum, targets.num_targets, targets.num_correct)
            by_group += torch.stack([torch.stack([values[name].detach() for name in groups]) for values in counted])
        loss_of_all, *rest = accelerator.reduce(torch.cat([losses[None], by_group.flatten()]), "sum").tolist()
        sums["loss"] = loss_of_all
        keys = [f"{key}/{name}" for key in ("loss", "n", "hits") for name in groups]
        sums |= dict(zip(keys, rest, strict=True))
        norm = accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip)
        sums["grad_norm"] = float(norm)
        if all_targets > 0 and math.isfinite(sums["loss"]) and math.isfinite(sums["grad_norm"]):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return sums

    def _log(self, step: int, rate: float, window: list[dict[str, float]], seconds: float, bar: Any) -> None:
        if not self.accelerator.is_main_process:
            return
        values: dict[str, float] = {
            "step": step,
            "loss": sum(m["loss"] for m in window) / len(window),
            "lr": rate,
            "grad_norm": sum(m["grad_norm"] for m in window) / len(window),
            "tokens_per_s": sum(m["tokens"] for m in window) / seconds,
            "loading_share": self.seconds_loading / seconds,
        }
        self.seconds_loading = 0.0
        for name in self.store.vocabulary.groups:
            n = sum(m[f"n/{name}"] for m in window)
            if n:
                values[f"loss/{name}"] = sum(m[f"loss/{name}"] for m in window) / n
                values[f"accuracy/{name}"] = sum(m[f"hits/{name}"] for m in window) / n
        with (self.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")
        if self.config.tracker != "none":
            self.accelerator.log(values, step=step)
        bar.set_postfix(loss=f"{values['loss']:.3f}", tokens_s=f"{values['tokens_per_s']:.0f}")

    def _save(self, step: int) -> Path:
        state = TrainingState(
            step=step,
            settings=self.settings,
            optimizer=optimizer_tensors(self.plain, getattr(self.optimizer, "optimizer", self.optimizer)),
        )
        path = self.out / "checkpoints" / f"step-{step:08d}"
        if self.accelerator.is_main_process:
            path = save_checkpoint(
                self.out,
                self.plain,
                self.processor,
                state,
                model_card(self.recipe, self.store, step),
                self.config.keep,
            )
        self.accelerator.wait_for_everyone()
        return path


def _step_seed(seed: int, step: int, process: int) -> int:
    return int(np.random.default_rng([seed, 2, step, process]).integers(1 << 62))


def _forget_steps(metrics: Path, step: int) -> None:
    """Remove the lines after `step`, which an interrupted run wrote and its continuation writes again."""
    if metrics.is_file():
        lines = metrics.read_text().splitlines(keepends=True)
        metrics.write_text(
            "".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step)
        )


def _num_targets(batch: Batch) -> torch.Tensor:
    count = predicting(batch.loss_mask, batch.segments).sum()
    return count if batch.action_targets is None else count + batch.action_targets.sum()


def _synchronised(accelerator: Accelerator, model: torch.nn.Module, last: bool) -> Any:
    """Gradients are exchanged between processes with the last micro-batch only."""
    return contextlib.nullcontext() if last else accelerator.no_sync(model)


def _mention_spare_latents(sampler: Sampler) -> None:
    """Say it once where an observation is given more positions than it has tokens: allowed, but wasteful."""
    latents = sampler.trunk.latents
    if latents <= 1:  # no observation has fewer tokens than one: its separator
        return
    sizes = {dataset.name: smallest_observation(dataset, sampler.trunk) for dataset in sampler.store}
    spare = [f"{name} ({size})" for name, size in sizes.items() if size is not None and size < latents]
    if spare:
        print(
            f"--model.latents {latents} is more than an observation has tokens in {', '.join(spare)}; "
            "--model.latents 0 would take fewer positions there"
        )


def _check_tracker(config: TrainConfig) -> None:
    if config.tracker != "none" and importlib.util.find_spec(config.tracker) is None:
        raise UserError(f"--train.tracker {config.tracker} needs its package: pip install {config.tracker}")


def _newest(config: TrainConfig, out: Path) -> tuple[Path, TrainingState] | None:
    if config.resume == "never":
        if list_checkpoints(out) or (out / "metrics.jsonl").exists():
            raise UserError(
                f"{out} holds a run already; continue it with --train.resume auto, or choose another --out"
            )
        return None
    return load_newest(out)
