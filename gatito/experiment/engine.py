"""Measures the parts of an experiment, several at a time, and writes what came of them.

OUT/experiment.json                settings: another experiment is not continued here
OUT/parts/PART/result.json         a finished part; beside it its run and the episodes that were played
OUT/results.json, table.md, NAME.png
"""

import contextlib
import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from gatito import __version__
from gatito.data.publish import check_writable
from gatito.errors import UserError
from gatito.experiment.plan import RESULT, Experiment, Measured, Part, folder_of, settings_json

SCHEMA = 1
SAID = "experiment.json"
LOCK = ".lock"
LOG = "log.txt"
"""What the process of a part prints, in its folder."""
POLL_S = 0.2


def run_experiment(experiment: Experiment, out: Path, command: Sequence[str], parallel: int = 2) -> Path:
    """Carry out an experiment and return its `results.json`; what is finished in `out` already is not done again.

    Parts are measured by `command` with `--part NAME` behind it, `parallel` at a time, or with 0 in this process.
    Raises `UserError` for an `out` of other settings, and where a part fails: the others are finished first.
    """
    if parallel < 0:
        raise UserError(f"--parallel is {parallel}, allowed 0 (in this process) and more")
    _begin(experiment, out)
    experiment.prepare(out)
    parts = experiment.parts(out)
    _measure_all(parts, out, command, parallel)
    return _write(experiment, [measured_of(part, out) for part in parts], out)


def measure_part(experiment: Experiment, out: Path, name: str) -> None:
    """Measure one part; raises `UserError` where there is no such part."""
    parts = {part.name: part for part in experiment.parts(out)}
    if name not in parts:
        raise UserError(f"--part {name}: the experiment has {', '.join(parts)}")
    torch.set_num_threads(experiment.settings.threads)
    _measure(parts[name], out)


def measured_of(part: Part, out: Path) -> Measured:
    """A part that is finished; raises `UserError` for a result that cannot be read."""
    folder = folder_of(part.name, out)
    try:
        values = json.loads((folder / RESULT).read_text())
        float(values["seconds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / RESULT}: {error}; remove it, and the part is measured again") from None
    return Measured(folder=folder, facts=part.facts, values=values)


def _begin(experiment: Experiment, out: Path) -> None:
    check_writable(out)
    said, settings = out / SAID, settings_json(experiment)
    if said.is_file():
        try:
            found = dict(json.loads(said.read_text()))
        except (ValueError, TypeError) as error:
            raise UserError(f"{said} is damaged ({error}); choose another --out") from None
        changed = sorted(key for key in settings.keys() | found.keys() if settings.get(key) != found.get(key))
        if changed:
            words = ", ".join(f"{key} was {found.get(key)!r}, now {settings.get(key)!r}" for key in changed)
            raise UserError(f"{out} holds an experiment of other settings ({words}); choose another --out")
        return
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and holds no experiment; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    temporary = said.with_suffix(".partial")
    temporary.write_text(json.dumps(settings, indent=1))
    temporary.rename(said)


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
        values = {**part.measure(folder), "seconds": time.monotonic() - began}
        temporary = (folder / RESULT).with_suffix(".partial")
        temporary.write_text(json.dumps(values, indent=1))
        temporary.rename(folder / RESULT)


def _measure_all(parts: Sequence[Part], out: Path, command: Sequence[str], parallel: int) -> None:
    """Measure what is not finished yet, each part after those that it needs."""
    finished = {part.name for part in parts if (folder_of(part.name, out) / RESULT).is_file()}
    waiting = [part for part in parts if part.name not in finished]
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed: list[str] = []
    with _ended(running), tqdm(total=len(parts), initial=len(finished), desc="measure", unit="part") as bar:
        while waiting or running:
            for part in [part for part in waiting if set(part.needs) <= finished]:
                if parallel == 0:
                    _measure(part, out)
                    finished.add(part.name)
                    bar.update()
                elif len(running) < parallel:
                    running[part.name] = _start(part.name, out, command)
                else:
                    continue
                waiting.remove(part)
            for name, process in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    (failed.append if process.returncode else finished.add)(name)
                    bar.update()
                    bar.set_postfix_str(name)
            blocked = set(failed)
            waiting = [part for part in waiting if not blocked & set(part.needs)]
            if running:
                time.sleep(POLL_S)
    if failed:
        log = folder_of(failed[0], out) / LOG
        last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise UserError(f"{len(failed)} parts failed, first {failed[0]}: {last[0]} (see {log}); run it again")


@contextlib.contextmanager
def _ended(running: Mapping[str, subprocess.Popen[bytes]]) -> Iterator[None]:
    """Whatever ends the experiment ends its parts too; killed, it cannot, and `_measure` finds them locked."""
    try:
        yield
    finally:
        for process in running.values():
            process.terminate()


def _start(name: str, out: Path, command: Sequence[str]) -> subprocess.Popen[bytes]:
    folder = folder_of(name, out)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("ab") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        return subprocess.Popen([*command, "--part", name], stdout=log, stderr=log, env=environment)


def _write(experiment: Experiment, measured: Sequence[Measured], out: Path) -> Path:
    """Write table, picture and results, and print the table."""
    summary = experiment.summary(measured)
    tables = "\n\n".join(table.markdown() for table in summary.tables)
    findings = "\n".join(f"- {finding}" for finding in summary.findings)
    (out / "table.md").write_text(f"# {experiment.question}\n\n{tables}\n\n{findings}\n")
    experiment.draw(measured, summary, out / f"{experiment.name}.png")
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "gatito": __version__,
        "machine": machine(),
        "settings": settings_json(experiment),
        "part_seconds": sum(m.values["seconds"] for m in measured),
        "findings": list(summary.findings),
        "summary": dict(summary.values),
        "parts": [{"name": m.folder.name, "facts": dict(m.facts), **m.values} for m in measured],
    }
    target = out / "results.json"
    temporary = target.with_suffix(".partial")
    temporary.write_text(json.dumps(results, indent=1, allow_nan=False))
    temporary.rename(target)
    print(f"{tables}\n\n{findings}\n\n{target}\n{out / 'table.md'}\n{out / f'{experiment.name}.png'}")
    return target


def machine() -> str:
    """What it was measured on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.machine()}, {os.cpu_count()} cores, {device}, torch {torch.__version__}"


def command_of(arguments: Sequence[str]) -> list[str]:
    """This command line, to be called again."""
    return [sys.executable, "-m", "gatito", *arguments]
