"""Measures the parts of an experiment, several at a time, and writes what came of them.

OUT/experiment.json                what decides what is measured: another experiment is not continued here
OUT/parts/PART/result.json         a finished part; beside it its run and the episodes that were played
OUT/results.json, table.md, NAME.png
"""

import contextlib
import fcntl
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from tqdm import tqdm

from gatito import __version__
from gatito.data.publish import check_writable
from gatito.errors import UserError, nearest
from gatito.eval.wording import counted
from gatito.experiment.plan import RESULT, Experiment, Measured, Part, folder_of, identity_json, settings_json

SCHEMA = 1
IDENTITY = "experiment.json"
LOCK = ".lock"
LOG = "log.txt"
"""What the process of a part prints, in its folder."""
PARENT = "GATITO_EXPERIMENT"
"""Environment variable with the process that started a part."""
POLL_S = 0.2


def run_experiment(experiment: Experiment, out: Path, command: Sequence[str], parallel: int = 2) -> Path:
    """Carry out an experiment and return its `results.json`; what is finished in `out` already is not done again.

    Parts are measured by `command` with `--part NAME` behind it, `parallel` at a time, or with 0 in this process.
    Raises `UserError` for an `out` of other settings, and where a part fails: the others are finished first.
    """
    if parallel < 0:
        raise UserError(f"--parallel is {parallel}, allowed 0 (in this process) and more")
    experiment.check()
    identity = identity_json(experiment, parallel)
    if not _check_continues(identity, out):
        out.mkdir(parents=True, exist_ok=True)
        _write_json(identity, out / IDENTITY)
    parts = experiment.parts(out)
    if any(not _is_finished(part.name, out) for part in parts):
        experiment.prepare(out)
        _measure_all(parts, out, command, parallel, experiment.settings.threads)
    return _write(experiment, [Measured.of(part.name, out, part.facts) for part in parts], out)


def measure_part(experiment: Experiment, out: Path, name: str, parallel: int = 2) -> None:
    """Measure one part; raises `UserError` where there is no such part.

    It ends with the process that started it for an experiment.
    """
    parts = {part.name: part for part in experiment.parts(out)}
    if name not in parts:
        raise UserError(f"--part: {nearest(name, parts, 'part')}")
    if not _check_continues(identity_json(experiment, parallel), out):
        raise UserError(f"--part {name}: {out} holds no experiment yet; begin it without --part")
    if PARENT in os.environ:
        threading.Thread(target=_end_with, args=(int(os.environ[PARENT]),), daemon=True).start()
    torch.set_num_threads(experiment.settings.threads)
    _measure(parts[name], out)


def _end_with(parent: int) -> None:
    """End this process as soon as its parent is another one than that, be it by kill -9."""
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)  # a run that trains saves what it has first


def _is_finished(name: str, out: Path) -> bool:
    """Whether a part was measured."""
    return (folder_of(name, out) / RESULT).is_file()


def _check_continues(identity: Mapping[str, Any], out: Path) -> bool:
    """Whether `out` holds what has been measured of an experiment; raises `UserError` where it is of another one."""
    check_writable(out)
    said = out / IDENTITY
    if not said.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise UserError(f"{out} is not empty and holds no experiment; choose another --out")
        return False
    try:
        found = json.loads(said.read_text())
        name = found["experiment"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{said} is damaged ({error}); choose another --out") from None
    if name != identity["experiment"]:
        raise UserError(f"{out} holds the experiment {name!r}; choose another --out")
    changed = list(_changes(found, identity))
    if changed:
        raise UserError(f"{out} holds an experiment of other settings ({', '.join(changed)}); choose another --out")
    return True


def _changes(was: Any, now: Any, name: str = "") -> Iterator[str]:
    """What differs between two JSON values, by name."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        if list(was) != list(now) and was.keys() == now.keys():  # that of tasks decides what is held out, and a store
            yield f"{name or 'settings'} were in the order {', '.join(was)}"
        for key in sorted(was.keys() | now.keys()):
            inner = f"{name}.{key}" if name else key
            if key in was and key in now:
                yield from _changes(was[key], now[key], inner)
            else:
                yield f"{inner} was {'there' if key in was else 'not there'}"
    elif was != now:
        yield f"{name} was {was!r}, now {now!r}"


def _measure(part: Part, out: Path) -> None:
    """Measure a part; raises `UserError` where another process does, such as one whose experiment was killed."""
    folder = folder_of(part.name, out)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{folder} is being measured by another process; wait for it, or end it") from None
        began = time.monotonic()
        _write_json({**part.measure(folder), "seconds": time.monotonic() - began}, folder / RESULT)


def _write_json(values: Mapping[str, Any], path: Path) -> None:
    """Whole, or not at all."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(values, indent=1, allow_nan=False))
    temporary.rename(path)


def _measure_all(parts: Sequence[Part], out: Path, command: Sequence[str], parallel: int, threads: int) -> None:
    """Measure what is not finished yet, each part after those that it needs."""
    finished = {part.name for part in parts if _is_finished(part.name, out)}
    waiting = [part for part in parts if part.name not in finished]
    failed: dict[str, str] = {}
    bar = tqdm(total=len(parts), initial=len(finished), desc="measure", unit="part")
    with _Workers(out, command, parallel, threads) as workers, bar:
        while waiting or workers.are_busy:
            for part in [part for part in waiting if set(part.needs) <= finished]:
                if workers.take(part):
                    waiting.remove(part)
            for name, failure in workers.ended().items():
                if failure is None:
                    finished.add(name)
                else:
                    failed[name] = failure
                bar.update()
                bar.set_postfix_str(name)
            lost = set(failed)
            while in_vain := {part.name for part in waiting if lost & set(part.needs)} - lost:
                lost |= in_vain
            waiting = [part for part in waiting if part.name not in lost]
    if failed:
        name, why = next(iter(failed.items()))
        raise UserError(
            f"{counted(len(failed), 'part')} failed, first {name}: {why}; once that is mended, run it again"
        )


class _Workers:
    """The processes that measure parts, or with `parallel` 0 this one; they end with the experiment.

    Where it is killed, they end themselves.
    """

    def __init__(self, out: Path, command: Sequence[str], parallel: int, threads: int) -> None:
        self.out, self.command, self.parallel, self.threads = out, command, parallel, threads
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.measured_here: dict[str, str | None] = {}

    @property
    def are_busy(self) -> bool:
        """Whether there is more to come from `ended`."""
        return bool(self.running or self.measured_here)

    def take(self, part: Part) -> bool:
        """Begin with a part; returns whether anybody is free to."""
        if len(self.running) + len(self.measured_here) >= max(1, self.parallel):
            return False
        if self.parallel:
            self.running[part.name] = _start(part.name, self.out, self.command)
        else:
            self.measured_here[part.name] = self._measure_here(part)
        return True

    def _measure_here(self, part: Part) -> str | None:
        try:
            with _computing_with(self.threads):
                _measure(part, self.out)
        except UserError as error:
            return str(error)
        return None

    def ended(self) -> dict[str, str | None]:
        """The parts that have ended since, each with why it failed, None where it did not; waits a moment for one."""
        codes = {name: code for name, process in self.running.items() if (code := process.poll()) is not None}
        for name in codes:
            del self.running[name]
        ended = self.measured_here | {name: self._failure(name, code) for name, code in codes.items()}
        self.measured_here = {}
        if not ended and self.running:
            time.sleep(POLL_S)
        return ended

    def _failure(self, name: str, code: int) -> str | None:
        if code < 0:
            return f"it was ended by signal {-code} (out of memory?)"
        return _last_words(folder_of(name, self.out) / LOG) if code else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait()


@contextlib.contextmanager
def _computing_with(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _last_words(log: Path) -> str:
    """What a process said last."""
    (last,) = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
    return f"{last} (see {log})"


def _start(name: str, out: Path, command: Sequence[str]) -> subprocess.Popen[bytes]:
    folder = folder_of(name, out)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("ab") as log:
        own = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), PARENT: str(os.getpid())}
        return subprocess.Popen([*command, "--part", name], stdout=log, stderr=log, env={**os.environ, **own})


def _write(experiment: Experiment, measured: Sequence[Measured], out: Path) -> Path:
    """Write table, picture and results, and print the table."""
    summary = experiment.summary(measured)
    tables = "\n\n".join(table.markdown() for table in summary.tables)
    findings = "\n".join(f"- {finding}" for finding in summary.findings)
    (out / "table.md").write_text(f"# {experiment.question}\n\n{tables}\n\n{findings}\n")
    summary.draw(out / f"{experiment.name}.png")
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "gatito": __version__,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(),
        "settings": settings_json(experiment),
        "made_of": experiment.made_of(),
        "part_seconds": sum(m.values["seconds"] for m in measured),
        "findings": list(summary.findings),
        "summary": dict(summary.values),
        "parts": [{"name": m.folder.name, "facts": dict(m.facts), **m.values} for m in measured],
    }
    target = out / "results.json"
    _write_json(results, target)
    print(f"{tables}\n\n{findings}\n\n{target}\n{out / 'table.md'}\n{out / f'{experiment.name}.png'}")
    return target


def machine() -> str:
    """What it was measured on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{_processor()}, {os.cpu_count()} cores, {device}, torch {torch.__version__}"


def _processor() -> str:
    """Its name, where the system says it."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.is_file() else []
    return str(names[0]) if names else platform.machine()


def command_of(arguments: Sequence[str]) -> list[str]:
    """This command line, to be called again."""
    return [sys.executable, "-m", "gatito", *arguments]
