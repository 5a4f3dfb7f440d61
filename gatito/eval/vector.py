"""A Gymnasium vector environment as simulators of one task: its environments are the sessions of an actor."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array, iterate

from gatito.data.episode import copied
from gatito.data.tasks import TaskSpec
from gatito.errors import UserError
from gatito.eval.simulators import Act, Answer, Begin, Moment, Request


class VectorSimulators:
    """All environments of a `VectorEnv` step together, those without an episode by an action of no consequence.

    It has to leave finished environments alone (`AutoresetMode.DISABLED`) and to begin those of a mask anew
    (`options={"reset_mask": ...}`, as Gymnasium's own do), so that every episode begins with its seed. What it raises
    ends the evaluation: there is no knowing which of its environments it was.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        """Raises `UserError` for a vector environment that resets by itself."""
        mode = envs.metadata.get("autoreset_mode")
        if mode != AutoresetMode.DISABLED:
            raise UserError(
                f"the vector environment resets by itself ({mode}), so that its episodes do not begin with their "
                "seeds; make it with gymnasium.make_vec(..., vectorization_mode='sync', "
                "vector_kwargs={'autoreset_mode': gymnasium.vector.AutoresetMode.DISABLED})"
            )
        self.envs = envs
        self._spec: TaskSpec | None = None
        self._idle = envs.single_action_space.sample()
        self._resting = np.ones(envs.num_envs, np.bool_)
        """Those that must be reset before they are stepped."""

    def exchange(self, requests: Mapping[int, Request]) -> dict[int, Answer]:
        """Step where an action is given, then begin the episodes that are to begin.

        Raises `UserError` for more slots than environments, and for a second task.
        """
        for slot, request in requests.items():
            self._check(slot, request)
        actions = {slot: request.action for slot, request in requests.items() if isinstance(request, Act)}
        begins = {slot: request.seed for slot, request in requests.items() if isinstance(request, Begin)}
        answers: dict[int, Answer] = {}
        if self._resting.all():  # a mask must leave something that was observed
            self._reset(dict.fromkeys(range(self.envs.num_envs), 0))
        if actions:
            answers |= self._step(actions)
        if begins:
            answers |= self._reset(begins)
        return answers

    def close(self) -> None:
        """Close the vector environment."""
        self.envs.close()

    def _check(self, slot: int, request: Request) -> None:
        if slot >= self.envs.num_envs:
            raise UserError(
                f"sessions are more than the {self.envs.num_envs} environments of the vector environment; use as many"
            )
        if isinstance(request, Begin):
            self._spec = self._spec or request.spec
            if request.spec is not self._spec:
                raise UserError(
                    f"a vector environment plays one task, here {self._spec.id!r}; evaluate {request.spec.id!r} apart"
                )

    def _reset(self, seeds: Mapping[int, int]) -> dict[int, Answer]:
        mask = np.zeros(self.envs.num_envs, np.bool_)
        mask[list(seeds)] = True
        every = [seeds.get(slot) for slot in range(self.envs.num_envs)]
        observations, _ = self.envs.reset(seed=every, options={"reset_mask": mask})  # type: ignore[arg-type]
        self._resting[mask] = False
        rows = list(iterate(self.envs.observation_space, observations))
        return {slot: Moment(observation=copied(rows[slot])) for slot in seeds}

    def _step(self, actions: Mapping[int, Any]) -> dict[int, Answer]:
        if self._resting.any():  # what is stepped without an episode; it begins anew before it has one
            self._reset(dict.fromkeys(np.flatnonzero(self._resting).tolist(), 0))
        N, space = self.envs.num_envs, self.envs.single_action_space
        every = [actions.get(slot, self._idle) for slot in range(N)]
        batch: Any = concatenate(space, every, create_empty_array(space, N))  # type: ignore[arg-type]
        observations, rewards, terminations, truncations, _ = self.envs.step(batch)
        self._resting = np.logical_or(terminations, truncations)
        rows = list(iterate(self.envs.observation_space, observations))
        return {
            slot: Moment(
                observation=copied(rows[slot]),
                reward=float(rewards[slot]),
                terminated=bool(terminations[slot]),
                truncated=bool(truncations[slot]),
            )
            for slot in actions
        }
