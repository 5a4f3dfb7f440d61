"""Demonstrations that prompts are made of: a person's, an expert's, or out of a file; a person's can be saved."""

import itertools
import os
import re
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minari.data_collector import EpisodeBuffer

from gatito.data.checks import checked_tokens
from gatito.data.episode import Episode
from gatito.data.formats.source import naming
from gatito.data.minari_arrow import FILE, EncodedEpisode, encode_episode, num_rows
from gatito.data.minari_episodes import HasSpaces, MinariWriter, episode_from_buffer, open_minari
from gatito.data.publish import check_writable, published
from gatito.data.tasks import TaskSpec
from gatito.errors import UserError
from gatito.tokenizers import Layout

PERSON = "human"
"""Who acted, as datasets name them."""
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*-v[0-9]+")
"""Last part of a dataset's id, as Minari has them."""
MOST = 256
"""Demonstrations that are kept in memory; those of persons that are not saved are kept however many they are."""


@dataclass(kw_only=True, eq=False)
class Demonstration:
    """An episode of T timesteps."""

    number: int
    """How requests name it."""
    spec: TaskSpec
    """Its task."""
    env: HasSpaces
    """For the spaces of its task."""
    by: str
    """Who gave it, in words."""
    episode: Episode
    """What prompts are made of."""
    buffer: EpisodeBuffer | None
    """What can be saved; None for what is not a person's."""
    saved: str | None = None
    """Folder of the dataset that it was saved to."""

    @property
    def is_unsaved(self) -> bool:
        """Whether it would be lost."""
        return self.buffer is not None and self.saved is None

    def described(self) -> dict[str, Any]:
        """For the page."""
        return {
            "number": self.number,
            "task": self.spec.id,
            "by": self.by,
            "length": len(self.episode),
            "return": self.episode.total_return,
            "recorded": self.buffer is not None,
            "saved": self.saved,
        }


class Demonstrations:
    """Those of all pages."""

    def __init__(self, root: Path) -> None:
        """Datasets are saved to `root/TASK/NAME`."""
        self.root = root
        self._all: dict[int, Demonstration] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def described(self) -> list[dict[str, Any]]:
        """For the page, in the order that they came."""
        return [d.described() for d in list(self._all.values())]

    def of(self, number: int, task: str) -> Demonstration:
        """One of a task; raises `UserError` where it is none, or another task's."""
        found = self._all.get(number)
        if found is None:
            raise UserError(f"there is no demonstration {number}; reload the page")
        if found.spec.id != task:
            raise UserError(f"demonstration {number} is of {found.spec.id!r}, which cannot prompt {task!r}")
        return found

    def add(self, spec: TaskSpec, env: HasSpaces, layout: Layout, by: str, buffer: EpisodeBuffer, agent: str) -> int:
        """Keep an episode that was played here; a person's (`PERSON`) can be saved. Returns its number.

        Raises `UserError` for what cannot become tokens.
        """
        episode = episode_from_buffer(buffer, spec.id, agent)
        return self._keep(spec, env, layout, by, episode, buffer if agent == PERSON else None)

    def upload(self, spec: TaskSpec, env: HasSpaces, layout: Layout, name: str, content: bytes) -> int:
        """Keep the episode of a Minari dataset's `part-0.arrow`; returns its number.

        Raises `UserError` where it is none of this task.
        """
        where = f"{name}: no episode of {spec.id!r}"
        with tempfile.TemporaryDirectory() as folder, naming(where):
            writer = MinariWriter(Path(folder), f"{spec.id}/upload-v0", env, {"gatito_task": spec.id})
            writer.append(EncodedEpisode(content=content, metadata={"total_steps": num_rows(content) - 1}))
            writer.close()
            try:
                episode = open_minari(folder).episode(0)
            except UserError as error:
                reason = str(error).removeprefix(f"{folder}, episode 0").lstrip(":, ")
                raise UserError(
                    f"{where} ({reason}); give a {FILE} of one of its datasets, as `gatito data collect` writes them"
                ) from None
        return self._keep(spec, env, layout, name, episode, None)

    def save(self, task: str, name: str) -> Path:
        """Write what was recorded of a task and is not saved yet as a dataset, and return its folder.

        Raises `UserError` where there is nothing, and for a name that is taken or not allowed.
        """
        if not NAME.fullmatch(name):
            raise UserError(f"the name {name[:80]!r}, expected letters, digits and a version, such as 'lessons-v0'")
        with self._lock:
            unsaved = [d for d in self._unsaved() if d.spec.id == task]
            if not unsaved:
                raise UserError(f"nothing was recorded of {task!r} that is not saved yet; take the controls first")
            return self._write(unsaved, self.root / task / name)

    def save_rest(self) -> list[Path]:
        """Write what was not saved, by tasks, under the time of day; returns the folders.

        What cannot be written where it should be goes into a new folder for temporary files.
        """
        name, folders = time.strftime(f"unsaved-%Y%m%d-%H%M%S-{os.getpid()}-v0"), []
        for task in sorted({d.spec.id for d in self._unsaved()}):
            unsaved = [d for d in self._unsaved() if d.spec.id == task]
            try:
                folders.append(self._write(unsaved, self.root / task / name))
            except (UserError, OSError):
                elsewhere = Path(tempfile.mkdtemp(prefix="gatito-play-"))
                folders.append(self._write(unsaved, elsewhere / task / name))
        return folders

    def _unsaved(self) -> list[Demonstration]:
        return [d for d in self._all.values() if d.is_unsaved]

    def _write(self, these: Sequence[Demonstration], target: Path) -> Path:
        if target.exists():
            raise UserError(f"{target} exists; choose another name")
        check_writable(target.parent, "--record")
        spec, env = these[0].spec, these[0].env
        metadata = {
            "algorithm_name": PERSON,
            "gatito_task": spec.id,
            "gatito_actions": "executed",
            "gatito_license": spec.license,
            "description": f"episodes of {spec.id} by a person",
        }
        with published(target) as folder:
            writer = MinariWriter(folder, f"{spec.id}/{target.name}", env, metadata)
            for one in these:
                assert one.buffer is not None
                writer.append(encode_episode(one.buffer, env.observation_space, env.action_space, {"agent": PERSON}))
            writer.close()
        for one in these:
            one.saved = str(target)
        return target

    def _keep(
        self, spec: TaskSpec, env: HasSpaces, layout: Layout, by: str, episode: Episode, buffer: EpisodeBuffer | None
    ) -> int:
        checked_tokens(layout, episode, where=f"demonstration of {spec.id} ({by})")
        with self._lock:
            self._make_room()
            number = next(self._numbers)
            self._all[number] = Demonstration(
                number=number, spec=spec, env=env, by=by, episode=episode, buffer=buffer
            )
            return number

    def _make_room(self) -> None:
        """Forget the oldest that would not be lost, where there are many."""
        if len(self._all) >= MOST:
            oldest = next((d.number for d in self._all.values() if not d.is_unsaved), None)
            self._all.pop(oldest, None)  # type: ignore[arg-type]
