"""A thin client: what a robot or simulator needs to be driven by a policy server.

with Client("ws://127.0.0.1:8000") as client:
    client.reset(task="classic/cartpole", seed=0)
    action = client.act(observation)
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.sync.client import connect

from gatito.data.episode import Episode, row
from gatito.errors import UserError
from gatito.serve.messages import ACTIONS, DEMONSTRATION, OBSERVATION, PROMPT, RESET, action_of, joined_actions
from gatito.serve.wire import pack, unpack
from gatito.tokenizers.fields import Field

CLOSE_S = 1.0
"""Seconds that a server may take to say goodbye."""


class Client:
    """One session of a server."""

    def __init__(self, uri: str = "ws://127.0.0.1:8000", token: str | None = None, timeout_s: float = 60.0) -> None:
        """Connect; raises `UserError` where there is no server, or it refuses."""
        headers = {"Authorization": f"Api-Key {token}"} if token else None
        self._timeout_s = timeout_s
        self._opened = ExitStack()
        try:
            opening = connect(
                uri,
                compression=None,
                max_size=None,
                additional_headers=headers,
                open_timeout=timeout_s,
                close_timeout=CLOSE_S,
            )
            self._socket = self._opened.enter_context(opening)
        except (OSError, InvalidHandshake, InvalidURI) as error:
            raise UserError(f"no policy server at {uri} ({error})") from None
        self.metadata = self._received()
        """What the server said of itself: its tasks, their fields, the control rate."""
        self._task: str | None = self.metadata.get("task")
        self.timing: Mapping[str, Any] = {}
        """Of the last answer: `server_timing`, and whether it was late."""

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def tasks(self) -> list[str]:
        """Those that the server knows."""
        return list(self.metadata["tasks"])

    def reset(self, task: str | None = None, seed: int = 0, demonstration: Episode | None = None) -> None:
        """Begin an episode, prompted with a demonstration of the same task where one is given."""
        task = task or self._task
        message: dict[str, Any] = {RESET: {"seed": seed} if task is None else {"task": task, "seed": seed}}
        if demonstration is not None:
            actions = [
                joined_actions(self._actions(task), row(demonstration.actions, t)) for t in range(len(demonstration))
            ]
            message[DEMONSTRATION] = {**_named(demonstration.observations), ACTIONS: np.concatenate(actions)}
        self._exchange(message)
        self._task = task

    def act(self, observation: Any, prompt: str | None = None) -> Any:
        """The action for an observation of the task's space; `prompt` replaces its instruction.

        Raises `UserError` with what the server says is wrong.
        """
        message = dict(_named(observation))
        if prompt is not None:
            message.pop(self.metadata["tasks"][self._task]["prompt"], None)
            message[PROMPT] = prompt
        answer = self._exchange(message)
        self.timing = {key: value for key, value in answer.items() if key != ACTIONS}
        return action_of(self._actions(self._task), answer[ACTIONS])

    def close(self) -> None:
        """End the session."""
        self._opened.close()

    def _actions(self, task: str | None) -> list[Field]:
        described = self.metadata["tasks"].get(task)
        if described is None:
            raise UserError(
                f"task {task!r} is none of the server's: {', '.join(self.tasks)}; reset the client for one"
            )
        return [
            Field(path=tuple(f["path"]), kind=f["kind"], dtype=f["dtype"], shape=tuple(f["shape"]))
            for f in described["actions"]
        ]

    def _exchange(self, message: Mapping[str, Any]) -> dict[str, Any]:
        try:
            self._socket.send(pack(message))
        except ConnectionClosed as error:
            raise UserError(f"the server has ended the session ({error}); connect anew") from None
        return self._received()

    def _received(self) -> dict[str, Any]:
        try:
            answer = self._socket.recv(self._timeout_s)
        except ConnectionClosed as error:
            raise UserError(f"the server has ended the session ({error}); connect anew") from None
        except TimeoutError:
            self.close()  # what comes later would be taken for the next answer
            raise UserError(f"the server has not answered for {self._timeout_s:g} s; connect anew") from None
        if isinstance(answer, str):
            raise UserError(f"the server says: {answer}")
        return unpack(answer)


def _named(observation: Any) -> dict[str, Any]:
    """An observation as a message: of a Dict or Tuple space its parts by name."""
    if isinstance(observation, tuple):
        observation = dict(enumerate(observation))
    if not isinstance(observation, dict):
        return {OBSERVATION: observation}
    return {str(key): _named_part(value) for key, value in observation.items()}


def _named_part(value: Any) -> Any:
    return _named(value) if isinstance(value, dict | tuple) else value
