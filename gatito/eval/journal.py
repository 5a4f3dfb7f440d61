"""Episodes that are finished, written down one by one, so that an evaluation that was killed goes on where it was.

OUT/evaluation.json           what is evaluated and how
OUT/episodes-00000.jsonl      a line for each finished context, of process 0; other processes have files of their own
"""

import fcntl
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from gatito.errors import UserError
from gatito.eval.scores import EpisodeRecord

SETTINGS = "evaluation.json"


class Journal:
    """The lines of one process, beside those of all others."""

    def __init__(self, out: Path, settings: Mapping[str, Any], rank: int = 0) -> None:
        """Open the journal of `out`; `settings` decide which episodes are played, and what they come out as.

        Raises `UserError` where the folder holds an evaluation with other settings.
        """
        self.out, self.rank = out, rank
        out.mkdir(parents=True, exist_ok=True)
        found = _read(out / SETTINGS)
        if found is None:
            self._write_settings(settings)
        elif found != json.loads(json.dumps(settings)):
            differing = sorted(k for k in {*found, *settings} if found.get(k) != settings.get(k))
            values = "; ".join(f"{k}: {found.get(k)!r} there, {settings.get(k)!r} here" for k in differing)
            raise UserError(f"{out} holds an evaluation with other settings ({values}); choose another --out")
        self.records = self._read_all()
        """Of all processes, as far as they were finished when this was opened."""
        self._file = self._locked(out / f"episodes-{rank:05d}.jsonl")

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, records: Sequence[EpisodeRecord]) -> None:
        """Write down a finished context; it outlives this process."""
        self._file.write(json.dumps([record.to_json() for record in records]) + "\n")
        self._file.flush()

    def all_records(self, wanted: Sequence[tuple[str, str, int]]) -> list[EpisodeRecord]:
        """The records of tasks, prompts and seeds, in this order, by whichever process.

        Raises `UserError` where one is missing.
        """
        found = {(r.task, r.prompt, r.seed): r for r in self._read_all()}
        missing = [key for key in wanted if key not in found]
        if missing:
            task, prompt, seed = missing[0]
            raise UserError(
                f"{self.out} lacks {len(missing)} of {len(wanted)} episodes, the first of {task}, prompt {prompt}, "
                f"seed {seed}; all processes must see this folder. The same command plays what is missing"
            )
        return [found[key] for key in wanted]

    def remove(self) -> None:
        """Remove the journal, once what it says stands in `results.json`."""
        for path in (*self.out.glob("episodes-*.jsonl"), self.out / SETTINGS):
            path.unlink(missing_ok=True)

    def _locked(self, path: Path) -> TextIO:
        """Open the file of this process for adding, without half a line at its end."""
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise UserError(
                f"{self.out} is being evaluated by another process; wait for it, or choose another --out"
            ) from None
        file.seek(0)
        content = file.read()
        if not content.endswith("\n"):
            file.truncate(len(content[: content.rfind("\n") + 1].encode()))
        return file

    def _read_all(self) -> list[EpisodeRecord]:
        records: list[EpisodeRecord] = []
        for path in sorted(self.out.glob("episodes-*.jsonl")):
            for number, line in enumerate(path.read_text().splitlines(keepends=True), start=1):
                if not line.endswith("\n"):  # a process that was killed, or is at it, leaves half a line at the end
                    break
                try:
                    records.extend([EpisodeRecord.from_json(values) for values in json.loads(line)])
                except (ValueError, TypeError) as error:
                    raise UserError(f"{path}, line {number}: {error}; remove the line, it is played again") from None
        return records

    def _write_settings(self, settings: Mapping[str, Any]) -> None:
        temporary = self.out / f".{SETTINGS}.{self.rank}"
        temporary.write_text(json.dumps(settings, indent=1))
        temporary.rename(self.out / SETTINGS)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); choose another --out") from None
