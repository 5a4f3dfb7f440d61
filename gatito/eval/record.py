"""Rollouts written back as Minari datasets, one for each task and prompt."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
from minari.data_collector import EpisodeBuffer

from gatito.data.episode import check_values, stack
from gatito.data.minari_arrow import FILE, EncodedEpisode, encode_episode, read_metadata, write_episode
from gatito.data.minari_episodes import HasSpaces, MinariWriter
from gatito.data.publish import check_writable, published, remove_folder
from gatito.data.tasks import TaskSpec
from gatito.errors import UserError
from gatito.eval.results import Results
from gatito.eval.rollout import Played


def dataset_name(part: str) -> str:
    """Last part of the id of a dataset of rollouts."""
    return f"rollouts-{part}-v0"


def buffer_of(played: Played, env: HasSpaces) -> EpisodeBuffer:
    """An episode as it is recorded; raises `UserError` where its values are not of the environment's spaces."""
    where = f"task {played.spec.id!r}, seed {played.seed}"
    observations = stack(env.observation_space, played.observations, f"{where}, observation")
    check_values(env.observation_space, observations, f"{where}, observation", "repair the environment")
    T = len(played.actions)
    return EpisodeBuffer(
        seed=played.seed,
        observations=observations,
        actions=stack(env.action_space, played.actions, f"{where}, action"),
        rewards=played.rewards,
        terminations=[False] * (T - 1) + [played.terminated],
        truncations=[False] * (T - 1) + [not played.terminated],
        infos={},
    )


class RolloutRecorder:
    """Keeps finished episodes in `work`, each at once, and puts datasets together of them at the end.

    What an evaluation that was killed has kept is there for the one that continues it.
    """

    def __init__(self, work: Path, root: Path, envs: Mapping[str, gym.Env[Any, Any]]) -> None:
        """`envs` have the spaces of each task; datasets are written to `root/TASK/rollouts-PROMPT-v0`."""
        check_writable(root)
        self.work, self.root, self.envs = work, root, envs

    def check(self, specs: Sequence[TaskSpec], parts: Sequence[str]) -> None:
        """Raise `UserError` where a dataset is already there."""
        for spec in specs:
            for part in parts:
                target = self.root / spec.id / dataset_name(part)
                if target.exists():
                    raise UserError(f"--record: {target} exists; remove it or name another folder")

    def keep(self, played: Played) -> None:
        """Keep an episode; raises `UserError` where its values are not of the environment's spaces."""
        env = self.envs[played.spec.id]
        buffer = buffer_of(played, env)
        folder = self._folder(played.spec.id, played.part)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / str(played.seed), ignore_errors=True)  # of an episode that had to be played again
        episode = encode_episode(buffer, env.observation_space, env.action_space, {"agent": f"gatito-{played.part}"})
        write_episode(folder, played.seed, episode)

    def publish(self, specs: Sequence[TaskSpec], parts: Sequence[str], results: Results) -> list[Path]:
        """Put the datasets together of the finished episodes, each whole or not at all, and forget what was kept.

        Raises `UserError` where another one has appeared in the meantime.
        """
        finished = {(record.task, record.prompt, record.seed) for record in results.records if record.is_finished}
        written = []
        for spec in specs:
            for part in parts:
                kept = self._folder(spec.id, part)
                seeds = sorted(int(path.name) for path in kept.glob("*"))
                seeds = [seed for seed in seeds if (spec.id, part, seed) in finished]
                target = self.root / spec.id / dataset_name(part)
                if not seeds:  # none could be finished, or it was published before this evaluation was killed
                    continue
                metadata = {
                    "algorithm_name": f"gatito, prompt {part}",
                    "gatito_task": spec.id,
                    "gatito_actions": "executed",
                    "gatito_license": spec.license,
                    "description": f"rollouts of {results.checkpoint} on {spec.id}, prompt {part}",
                }
                with published(target) as folder:
                    writer = MinariWriter(folder, f"{spec.id}/{target.name}", self.envs[spec.id], metadata)
                    for seed in seeds:
                        content = (kept / str(seed) / FILE).read_bytes()
                        own = {k: v for k, v in read_metadata(kept, seed).items() if k != "id"}
                        writer.append(EncodedEpisode(content=content, metadata=own))
                    writer.close()
                remove_folder(kept)
                written.append(target)
        shutil.rmtree(self.work, ignore_errors=True)
        return written

    def _folder(self, task: str, part: str) -> Path:
        return self.work / task / part
