"""An episode on the page: in one pane, or in two that differ in their prompts and nothing else."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from gatito.data.recording import finite_reward
from gatito.data.tasks import TaskSpec, references
from gatito.errors import UserError
from gatito.eval.attention import last_attention
from gatito.eval.attention_chart import attention_picture
from gatito.eval.record import buffer_of
from gatito.eval.replay import draw_observation
from gatito.eval.rollout import Played
from gatito.eval.simulators import Act, Begin, Demonstrated, Failed, Lost, Moment, Request, Simulators
from gatito.pages import png_uri
from gatito.play.controls import controls_of
from gatito.play.demonstrations import PERSON, Demonstrations
from gatito.serve.messages import action_of, joined_actions, text_field
from gatito.serve.sessions import Begin as BeginSession
from gatito.serve.sessions import Sessions, Turn
from gatito.tokenizers import Layout, TokenSequence
from gatito.tokenizers.fields import Field, build_tree, value_at

ANSWER_S = 120.0
"""Seconds that the model may take for a step."""
PACE = (2.0, 30.0)
"""Fewest and most timesteps a second, at a speed of 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """A task that can be played on the page."""

    spec: TaskSpec
    """Environment and expert."""
    layout: Layout
    """Of the checkpoint, and of the environment."""
    env: gym.Env[Any, Any]
    """For its spaces; closed."""

    @property
    def pace(self) -> float:
        """Timesteps a second at a speed of 1."""
        return float(np.clip(self.env.metadata.get("render_fps") or PACE[1], *PACE))

    def described(self) -> dict[str, Any]:
        """For the page."""
        instruction = text_field(self.layout)
        return {
            "task": self.spec.id,
            "controls": controls_of(self.spec.id, self.layout, self.env),
            "instruction": None if instruction is None else instruction.name,
        }


@dataclass(kw_only=True, eq=False)
class Pane:
    """One of the episodes that are shown."""

    session: int
    """Of the actor."""
    prompt: TokenSequence | None
    """What its context begins with."""
    observations: list[Any] = field(default_factory=list)
    """As they are seen: with the instruction that was typed, where one was."""
    actions: list[Any] = field(default_factory=list)
    """Of the T timesteps so far."""
    rewards: list[float] = field(default_factory=list)
    """Likewise."""
    frame: NDArray[np.uint8] | None = None
    """What is on the page."""
    is_over: bool = False
    """Whether the episode has ended."""
    terminated: bool = False
    """Whether it ended by itself, rather than being cut."""


class Game:
    """A seeded episode, played by the agent or by a person."""

    def __init__(
        self,
        stage: Stage,
        sessions: Sessions,
        simulators: Simulators,
        panes: Mapping[int, TokenSequence | None],
        seed: int,
        *,
        instruction: str | None,
        controlled: bool,
    ) -> None:
        """`panes` are sessions of the actor, each with its prompt. Raises `UserError` for an instruction that the
        task has none for, or that is not of its space."""
        self.stage, self.seed, self.controlled = stage, seed, controlled
        self._sessions, self._simulators = sessions, simulators
        self.panes = [Pane(session=session, prompt=prompt) for session, prompt in panes.items()]
        self._is_kept = False
        self._instruction: str | None = None
        self.instruct(instruction)

    def instruct(self, text: str | None) -> None:
        """What is read in place of the environment's own text, from the next observation on."""
        if text is not None:
            space, where = self.stage.env.observation_space, _text(self.stage)
            for key in where.path:
                space = space[key]  # type: ignore[index]
            if not space.contains(text):
                raise UserError(f"the instruction {text[:80]!r} is not of {space}, which the task's texts are")
        self._instruction = text

    def begin(self) -> list[dict[str, Any]]:
        """The first moments."""
        if not self.controlled:
            self._decide(
                {
                    i: Turn(begin=BeginSession(layout=self.stage.layout, prompt=pane.prompt, seed=self.seed))
                    for i, pane in enumerate(self.panes)
                }
            )
        asked = Begin(spec=self.stage.spec, seed=self.seed, renders=True)
        return self._exchange(dict.fromkeys(range(len(self.panes)), asked))

    def step(self) -> list[dict[str, Any]]:
        """The agent acts in every pane that is not over; returns what they show then."""
        if self.controlled:
            raise UserError("you have the controls; give them back before the agent acts")
        self._check_going()
        going = [i for i, pane in enumerate(self.panes) if not pane.is_over]
        actions = self._decide({i: Turn(observation=self.panes[i].observations[-1]) for i in going})
        return self._act(actions)

    def act(self, values: tuple[float, ...]) -> list[dict[str, Any]]:
        """A person acts; raises `UserError` for what is no action of the task."""
        if not self.controlled:
            raise UserError("the agent has the controls; take them first")
        self._check_going()
        fields = self.stage.layout.actions
        wanted, space = sum(f.size for f in fields), self.stage.env.action_space
        if len(values) != wanted:
            raise UserError(f"an action of {len(values)} numbers, expected {wanted}")
        action = action_of(fields, np.array([values]))
        whole = np.allclose(joined_actions(fields, action)[0], values)  # what is cast to integers loses nothing
        if not (whole and space.contains(action)):
            raise UserError(f"the action {', '.join(f'{x:g}' for x in values)} is not of {space}")
        return self._act({0: action})

    @property
    def is_over(self) -> bool:
        """Whether all panes are."""
        return all(pane.is_over for pane in self.panes)

    def look(self, pane: int) -> str:
        """HTML of what the model looked at when it acted last; raises `UserError` where it has not acted."""
        if self.controlled or pane >= len(self.panes) or not self.panes[pane].actions:
            raise UserError("the agent has not acted here yet; let it take a step first")
        own = self.panes[pane]
        where = (own.session, self.stage.spec.id, self.seed, len(own.actions) - 1, own.prompt, None)
        turn = Turn(look=lambda actor: last_attention(actor, *where))
        return attention_picture(self._sessions.submit(own.session, turn).result(ANSWER_S))

    @property
    def has_unkept(self) -> bool:
        """Whether a person has recorded what is not kept yet."""
        return self.controlled and bool(self.panes[0].actions) and not self._is_kept

    def keep(self, demonstrations: Demonstrations) -> int:
        """Keep what a person did, to its last whole timestep; returns the number of the demonstration."""
        own = self.panes[0]
        if not self.has_unkept:
            raise UserError("nothing was recorded that is not kept yet; take the controls and act first")
        spec = self.stage.spec
        played = Played(
            spec=spec,
            part="none",
            seed=self.seed,
            observations=own.observations,
            actions=own.actions,
            rewards=own.rewards,
            terminated=own.terminated,
        )
        buffer = buffer_of(played, self.stage.env)
        by = f"you, seed {self.seed}, {time.strftime('%H:%M')}"
        number = demonstrations.add(spec, self.stage.env, self.stage.layout, by, buffer, PERSON)
        own.is_over, self._is_kept = True, True
        return number

    def image(self) -> NDArray[np.uint8]:
        """(H, W, C): the image that is observed in the first pane, else what the camera sees."""
        own = self.panes[0]
        if own.observations:
            for f in self.stage.layout.observations:
                if f.kind == "image":
                    return np.asarray(value_at(own.observations[-1], f.path), np.uint8)
        if own.frame is None:
            raise UserError("there is nothing on the page yet; begin an episode first")
        return own.frame

    def _check_going(self) -> None:
        if self.is_over:
            raise UserError("the episode is over; begin another one")

    def _decide(self, turns: Mapping[int, Turn]) -> dict[int, Any]:
        """Ask the sessions of panes together, and wait for all; where one fails, the episode is over in both."""
        self._sessions.submit_all({self.panes[i].session: turn for i, turn in turns.items()})
        try:
            return {i: turn.future.result(ANSWER_S) for i, turn in turns.items()}
        except Exception:
            for pane in self.panes:
                pane.is_over = True
            raise

    def _act(self, actions: Mapping[int, Any]) -> list[dict[str, Any]]:
        try:
            return self._exchange({i: Act(action=action) for i, action in actions.items()}, actions)
        except Exception:  # what came of the action is not known
            for pane in self.panes:
                pane.is_over = True
            raise

    def _exchange(
        self, asked: Mapping[int, Request], actions: Mapping[int, Any] | None = None
    ) -> list[dict[str, Any]]:
        """What each pane shows after what it was asked, and was done in it; raises `UserError` where a simulator
        fails."""
        shown = []
        for i, answer in sorted(self._simulators.exchange(asked).items()):
            if isinstance(answer, Failed | Lost):
                reason = answer.reason if isinstance(answer, Failed) else "its process has ended"
                raise UserError(f"the simulator of {self.stage.spec.id} failed: {reason}; begin another episode")
            assert not isinstance(answer, Demonstrated)
            shown.append(self._take_in(i, answer, *([actions[i]] if actions else [])))
        return shown

    def _take_in(self, number: int, moment: Moment, *action: Any) -> dict[str, Any]:
        """Take in a moment, and the action that led to it, where one did."""
        pane = self.panes[number]
        if action:
            where = f"task {self.stage.spec.id!r}, timestep {len(pane.actions)}"
            pane.rewards.append(finite_reward(moment.reward, where))
            pane.actions.extend(action)
        pane.observations.append(self._as_instructed(moment.observation))
        pane.is_over, pane.terminated = moment.terminated or moment.truncated, moment.terminated
        pane.frame = moment.frame
        drawn = moment.frame is None
        if drawn:
            pane.frame = draw_observation(moment.observation, self.stage.layout)
        assert pane.frame is not None
        total, known = float(np.sum(pane.rewards)), references().get(self.stage.spec.id)
        return {
            "pane": number,
            "timestep": len(pane.actions),
            "frame": png_uri(pane.frame),
            "drawn": drawn,
            "action": self._written(pane.actions[-1]) if pane.actions else None,
            "return": total,
            "over": pane.is_over,
            "score": known.score(total) if known is not None and pane.is_over else None,
            "text": self._read(pane.observations[-1]),
        }

    def _as_instructed(self, observation: Any) -> Any:
        if self._instruction is None:
            return observation
        text = _text(self.stage)
        leaves = {f.path: value_at(observation, f.path) for f in self.stage.layout.observations}
        return build_tree(leaves | {text.path: self._instruction})

    def _read(self, observation: Any) -> str | None:
        """The instruction as the model reads it."""
        text = text_field(self.stage.layout)
        return None if text is None else str(value_at(observation, text.path))

    def _written(self, action: Any) -> list[float]:
        return [float(x) for x in joined_actions(self.stage.layout.actions, action)[0]]


def _text(stage: Stage) -> Field:
    found = text_field(stage.layout)
    if found is None:
        raise UserError(f"{stage.spec.id} reads no instruction: its observations have no text, or several")
    return found
