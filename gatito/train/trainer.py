"""The training loop, on Accelerate."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed

from gatito.data.checks import check_store
from gatito.data.describe import MANY, by_domain, store_table
from gatito.data.packing import Batch
from gatito.data.publish import check_writable
from gatito.data.sampler import Sampler, smallest_observation
from gatito.data.store import Store, open_store
from gatito.errors import UserError
from gatito.model import GatitoConfig, GatitoForCausalLM, GatitoProcessor
from gatito.train.card import model_card, processor_of
from gatito.train.checkpoint import (
    FOLDER,
    TrainingState,
    list_checkpoints,
    load_newest,
    load_step,
    put_aside_newer,
    save_checkpoint,
)
from gatito.train.configs import Recipe, TrainConfig
from gatito.train.evaluation import evaluate_while_training, tasks_to_evaluate
from gatito.train.flops import batch_counts, batch_flops
from gatito.train.info import expected_epochs
from gatito.train.init import Beginning, began_with, begin_with
from gatito.train.lora import add_adapters, merged, read_adapter, write_adapter
from gatito.train.memory import available_bytes, check_fits, rows_per_gpu, training_memory
from gatito.train.optimizer import (
    Average,
    build_optimizer,
    learning_rate,
    optimizer_tensors,
    restore_optimizer,
    restore_own_parameters,
)
from gatito.train.parameters import count_parameters
from gatito.train.settings import check_same_settings, run_settings
from gatito.train.sharding import begin_accelerator, is_sharded, whole_model
from gatito.train.step import StepResult, optimizer_step
from gatito.train.stop import Stop, Terminated, noticing_sigterm
from gatito.train.stream import MicroBatches, loader, lost_workers_named, stream_of
from gatito.train.tracking import check_tracker
from gatito.train.watch import EVALUATIONS, METRICS, Watch, forget_steps, read_lines

MAX_SKIPPED = 3
"""Steps in a row with a loss or gradient that is not finite, before the run aborts."""


def train(recipe: Recipe, data: Path, out: Path, *, init: str | Path | None = None) -> Path:
    """Train a recipe on a store and return the last checkpoint.

    With `init`, a checkpoint's folder, that of a run, or `hf:owner/name`, the run begins with its weights and has its
    shape; of the recipe's model only the stochastic depth counts then.

    Raises `UserError` for data that is damaged or does not fit, for an `out` that holds another run, and for a
    loss that stays not finite; `Terminated` once it has saved after SIGTERM.
    """
    config = recipe.train
    check_tracker(config)
    check_writable(out)
    store = open_store(data)
    check_store(store)
    accelerator = begin_accelerator(config, out)
    found = _checkpoint(config, out, accelerator)
    beginning = _beginning(recipe, init, found[0] if found else None, store)
    if beginning is None:
        shape = recipe.model.build(store.vocabulary, config.context, store.text.end)
    else:
        shape, recipe = beginning.shape(recipe), beginning.recipe(recipe)
    sampler = stream_of(store, shape.trunk, config)
    settings = run_settings(recipe, store)
    if beginning is not None and init is not None:
        is_it = found is None or recipe.lora.rank  # otherwise it is the run's own checkpoint
        settings |= began_with(init, beginning.model if is_it else None, found[1].settings if found else {})
    if found:
        accepted = check_same_settings(found[1].settings, settings, found[0], accept_changes=config.accept_changes)
        for change in accepted:
            accelerator.print(f"continues although {change}")
    _check_memory(shape, config, sampler, accelerator)
    set_seed(config.seed)
    plain = GatitoForCausalLM(shape)
    if found and not recipe.lora.rank:
        # Copied: weights mapped from a file lie 8 bytes off the alignment of torch's own, and CPU matrix products
        # of them differ in the last bit.
        plain.load_state_dict(GatitoForCausalLM.from_pretrained(found[0]).state_dict())
    elif beginning is not None:
        plain.load_state_dict(beginning.model.state_dict())
    if recipe.lora.rank:
        add_adapters(plain, recipe.lora)
        if found:
            read_adapter(plain, found[0])
    configure(plain, config, accelerator.device)
    model, optimizer = accelerator.prepare(plain, build_optimizer(plain, config))
    plain = accelerator.unwrap_model(model)
    step, elapsed, begins_at = 0, 0.0, None
    if found:
        before = found[1].settings.get("train.optimizer", "adamw")
        if before == config.optimizer:
            restore_optimizer(plain, optimizer, found[1].optimizer)
        else:
            accelerator.print(f"the state of {before} is left behind: {config.optimizer} begins anew")
        begins_at, step, elapsed = found[0], found[1].step, found[1].elapsed_s
    average = Average(plain, config.average) if config.average else None
    if found and restore_own_parameters(plain, found[1].optimizer) and average is not None:
        average.steps = step
    del found  # the tensors of its files, which may be pruned
    processor = processor_of(store, sampler.trunk, None if beginning is None else beginning.processor)
    del beginning  # its weights were copied
    loop = _Loop(
        recipe, store, sampler, accelerator, model, plain, optimizer, average, out, settings, begins_at, processor
    )
    try:
        with lost_workers_named(), noticing_sigterm() as stop:
            return loop.run(step, elapsed, stop)
    except Terminated:
        raise
    except BaseException:  # the other processes may be anywhere: they are not waited for
        for tracker in accelerator.trackers:
            tracker.finish()
        raise


def _check_memory(shape: GatitoConfig, config: TrainConfig, sampler: Sampler, accelerator: Accelerator) -> None:
    """Raise `UserError` for a recipe that does not fit, before anything is built; by the first rows of the stream."""
    num_rows, processes = rows_per_gpu(config, accelerator.num_processes), accelerator.num_processes
    row = batch_counts(shape, sampler.batch(0, num_rows), dense=True).scaled(1 / num_rows)
    if accelerator.device.type == "cuda":
        row = dataclasses.replace(row, pairs=0)  # attention by blocks keeps no mask
    if is_sharded(accelerator):  # `accelerate launch` may ask for it too
        config = dataclasses.replace(config, sharding="fsdp")
    need = training_memory(shape, config, count_parameters(shape), row, processes)
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    check_fits(need, available_bytes(accelerator.device, on_this_machine), config, processes)


def configure(model: GatitoForCausalLM, config: TrainConfig, device: torch.device) -> None:
    """How the blocks are computed, which changes nothing of what they compute."""
    if device.type == "cuda":
        model.set_attn_implementation("flex_attention")
    if config.activation_checkpointing:
        # The name of today's transformers, and that of earlier ones.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    if config.compile:
        for block in model.model.blocks:  # all rows have the same length
            block.compile(dynamic=False)


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
        average: Average | None,
        out: Path,
        settings: dict[str, Any],
        begins_at: Path | None,
        processor: GatitoProcessor,
    ) -> None:
        self.config, self.recipe, self.store, self.sampler = recipe.train, recipe, store, sampler
        self.accelerator, self.model, self.plain, self.optimizer = accelerator, model, plain, optimizer
        self.average = average
        self.out, self.settings, self.saved = out, settings, begins_at
        self.processor = processor
        self.tasks = tasks_to_evaluate(self.config, processor, store.layouts())

    def run(self, first_step: int, seconds_before: float, stop: Stop) -> Path:
        """Train to the end and return the last checkpoint; raises `Terminated` once it was told to end, and saved."""
        config = self.config
        missing = self._evaluation_is_missing(first_step)
        if self.saved and self._is_over(first_step, seconds_before) and not missing:
            self.accelerator.print(f"step {first_step} of {config.steps} is the end of this run: nothing to do")
            self._end()
            return self.saved
        self._begin(first_step)
        watch = Watch(config, self.sampler, self.accelerator, self.out, first_step)
        try:
            if missing:
                self._evaluate(first_step, watch, stop)
            step, elapsed = self._train(first_step, seconds_before, stop, watch)
            path = self._save(step, elapsed)
            watch.say_domains()
        finally:
            watch.bar.close()
        self._end()
        return path

    def _end(self) -> None:
        """Finish trackers and the process group; all processes are here."""
        if self.accelerator.num_processes > 1:
            # gloo's threads drop the tensors of the last collective under the GIL, which torch keeps while it
            # joins them to end the process group: without this pause a run now and then hangs after its last step.
            time.sleep(0.2)
        self.accelerator.end_training()

    def _is_over(self, step: int, elapsed: float) -> bool:
        """Whether a run that continues from here has nothing left to do; a new one has at least a step."""
        out_of_time = self.config.minutes is not None and elapsed > 60 * self.config.minutes
        return step >= self.config.steps or (step > 0 and out_of_time)

    def _train(self, step: int, seconds_before: float, stop: Stop, watch: Watch) -> tuple[int, float]:
        """All steps from here on; returns how many there are then, and the seconds that they took in all."""
        config, accelerator = self.config, self.accelerator
        dataset = MicroBatches(self.sampler, config, accelerator.process_index, accelerator.num_processes)
        batches = loader(dataset, step, accelerator.device)
        began, skipped, elapsed, rate = time.monotonic(), 0, seconds_before, config.lr
        self.model.train()
        while True:
            elapsed, stopped = self._agree(seconds_before + time.monotonic() - began, stop)
            if stopped:
                path = self._save(step, elapsed)
                self._end()
                raise Terminated(f"told to end after step {step}; saved {path}, --train.resume auto continues")
            if self._is_over(step, elapsed):
                watch.log(step, rate, elapsed)
                return step, elapsed
            rate = learning_rate(config, step, self._progress(step, elapsed))
            # The generators are seeded anew, so that stochastic depth does not depend on an interruption.
            torch.manual_seed(_step_seed(config.seed, step, accelerator.process_index))
            result = self._step(batches, rate, watch)
            step += 1
            if self.average is not None:
                self.average.update()
            watch.step(step, result, rate, elapsed)
            skipped = 0 if result.is_finite else skipped + 1
            if skipped == MAX_SKIPPED:
                raise UserError(self._why_aborted(step, watch.names(step, result.not_finite)))
            if step % config.save_every == 0 or step == config.steps:
                with watch.aside():
                    self._save(step, elapsed)
                if step < config.steps:
                    watch.say_domains()
            self._evaluate(step, watch, stop)

    def _evaluation_is_missing(self, step: int) -> bool:
        """Whether that of the step from which a run continues was interrupted; what the main process reads counts."""
        due = bool(self.tasks) and step > 0 and step % self.config.evaluate_every == 0
        done = {line["step"] for line in read_lines(self.out / EVALUATIONS)}
        return bool(broadcast_object_list([due and step not in done])[0])

    def _progress(self, step: int, elapsed: float) -> float:
        """How much of the run is over, by its steps after the warm-up or by its minutes."""
        config = self.config
        by_steps = (step - config.warmup) / max(1, config.steps - config.warmup)
        return by_steps if config.minutes is None else max(by_steps, elapsed / (60 * config.minutes))

    def _begin(self, first_step: int) -> None:
        """Say what is trained on, and forget what an interrupted run wrote after its checkpoint."""
        self.out.mkdir(parents=True, exist_ok=True)
        if self.accelerator.is_main_process:
            if first_step == 0:
                _mention_spare_latents(self.sampler)
                self._describe_data()
            forget_steps(self.out, first_step)
            if self.config.resume_step is not None:
                put_aside_newer(self.out, first_step)
        if self.config.tracker != "none":
            self.accelerator.init_trackers("gatito", config={k: str(v) for k, v in self.settings.items()})

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

    def _agree(self, elapsed: float, stop: Stop) -> tuple[float, bool]:
        """The clock of the main process, and whether any process was told to end: the same for all of them."""
        own = [elapsed if self.accelerator.is_main_process else 0.0, float(stop.asked)]
        said = self.accelerator.reduce(torch.tensor(own, device=self.accelerator.device), "sum").tolist()
        return said[0], said[1] > 0

    def _step(self, batches: Iterator[Batch], rate: float, watch: Watch) -> StepResult:
        began = time.monotonic()
        loaded = [next(batches) for _ in range(self.config.accumulation)]
        watch.seconds_loading += time.monotonic() - began
        watch.flops += sum(batch_flops(self.plain.config, batch) for batch in loaded)
        vocabulary, clip = self.store.vocabulary, self.config.clip
        return optimizer_step(self.accelerator, self.model, self.optimizer, loaded, vocabulary, rate=rate, clip=clip)

    def _why_aborted(self, step: int, rows: list[str]) -> str:
        if not rows:
            rows = [f"{(step - MAX_SKIPPED) * self.config.batch} to {step * self.config.batch - 1}"]
        named = ", ".join(rows)
        return f"the loss is not finite at step {step} (stream rows {named}); lower the learning rate, --train.lr"

    def _whole_model(self, *, kept: bool = True) -> GatitoForCausalLM | None:
        """The model, or a copy where it has adapters or each process holds a shard of it; None where that is not
        `kept`."""
        if self.recipe.lora.rank:
            return merged(self.plain) if kept else None
        sharded = is_sharded(self.accelerator)
        return whole_model(self.plain, self.plain.config, kept=kept) if sharded else self.plain

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        """Within, the model is what is evaluated and saved to be used."""
        return contextlib.nullcontext() if self.average is None else self.average.in_place()

    def _evaluate(self, step: int, watch: Watch, stop: Stop) -> None:
        """Play the tasks, where it is their time."""
        if not self.tasks or step % self.config.evaluate_every:
            return
        with watch.aside(), self._averaged():
            model = self._whole_model()
            assert model is not None
            model.to(self.accelerator.device)
            evaluate_while_training(
                self.accelerator, model, self.processor, self.tasks, self.config, step, self.out, stop
            )

    def _save(self, step: int, elapsed: float) -> Path:
        """Write a checkpoint, where the last one is not of this step already."""
        saves = self.accelerator.is_main_process
        path = self.out / FOLDER / f"step-{step:08d}"
        if self.saved == path:
            return path
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        tensors: dict[str, torch.Tensor] = {}
        if saves or is_sharded(self.accelerator):  # then it takes all of them
            tensors = optimizer_tensors(self.plain, optimizer, kept=saves)
        if self.average is not None:
            tensors |= self.average.tensors()
        with self._averaged():
            model = self._whole_model(kept=saves)
            if saves and model is not None:
                state = TrainingState(step=step, settings=self.settings, optimizer=tensors, elapsed_s=elapsed)
                card = model_card(self.recipe, self.store, step, self.settings["init"])
                keep = {"keep": self.config.keep, "keep_every": self.config.keep_every}
                path = save_checkpoint(self.out, model, self.processor, state, card, **keep, also=self._write_adapter)
        self.accelerator.wait_for_everyone()
        self.saved = path
        return path

    def _write_adapter(self, folder: Path) -> None:
        if self.recipe.lora.rank:
            write_adapter(self.plain, self.recipe.lora, folder)


def _beginning(recipe: Recipe, init: str | Path | None, found: Path | None, store: Store) -> Beginning | None:
    """What a run begins with, or goes on with: adapters always with the weights that they are beside."""
    if init is None:
        if recipe.lora.rank:
            raise UserError("--lora.rank without --init: adapters need weights to adapt; name a checkpoint")
        return None
    return begin_with(init if found is None or recipe.lora.rank else found, store)


def _step_seed(seed: int, step: int, process: int) -> int:
    return int(np.random.default_rng([seed, 2, step, process]).integers(1 << 62))


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


def _checkpoint(config: TrainConfig, out: Path, accelerator: Accelerator) -> tuple[Path, TrainingState] | None:
    """Where to continue from; None is a fresh start, which never happens where there is a run."""
    if config.resume_step is not None:
        return load_step(out, config.resume_step)
    if config.resume == "never":
        if list_checkpoints(out) or (out / METRICS).exists():
            raise UserError(
                f"{out} holds a run already; continue it with --train.resume auto, or choose another --out"
            )
        return None
    return load_newest(out, accelerator.print)
