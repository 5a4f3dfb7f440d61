"""Plays episodes: what simulators show becomes tokens, and what the model chooses is done in them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from gatito.data.recording import finite_reward
from gatito.data.tasks import TaskSpec
from gatito.errors import UserError
from gatito.eval.scores import EpisodeRecord, Prompt, succeeded
from gatito.eval.simulators import Act, Answer, Begin, Demonstrated, Failed, Lost, Moment, Request, Simulators
from gatito.tokenizers import Layout, TokenSequence


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """Episodes that are played one after the other in one context."""

    spec: TaskSpec
    """Their task."""
    layout: Layout
    """Of the checkpoint."""
    part: Prompt
    """What the context begins with."""
    prompt: Callable[[], TokenSequence | None]
    """Gives it; asked when the context begins."""
    seeds: tuple[int, ...]
    """One for each episode, of its environment and its sampled actions alike."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Played:
    """An episode of T timesteps as it was played."""

    spec: TaskSpec
    """Its task."""
    part: Prompt
    """What its context began with."""
    seed: int
    """Of environment and actions."""
    observations: list[Any]
    """T + 1, the last of them after the end."""
    actions: list[Any]
    """T."""
    rewards: list[float]
    """T."""
    terminated: bool
    """Whether it ended by itself, else it was cut."""


class Acts(Protocol):
    """What plays: sessions that observe, and then decide together. A model does, and so do baselines."""

    num_sessions: int
    """Sessions, numbered from 0."""
    num_clipped: int
    """Observed values that were clipped so far, over all sessions."""

    def reset(self, session: int, layout: Layout, prompt: TokenSequence | None = None, seed: int = 0) -> None:
        """Begin an episode in an empty context, but for a prompt; raises `UserError` where it cannot."""
        ...

    def go_on(self, session: int, seed: int) -> None:
        """Begin another episode of the same task in the same context."""
        ...

    def observe(self, session: int, observation: Any, where: str = "observation") -> None:
        """Take in what a session sees; raises `UserError`, which `where` begins, where it is not of the space."""
        ...

    def decide(self) -> Mapping[int, Any]:
        """The action of each session that has observed since it decided last."""
        ...


class Recorder(Protocol):
    """Keeps whole episodes."""

    def keep(self, played: Played) -> None:
        """Keep one that was finished."""
        ...


@dataclass(kw_only=True, eq=False)
class _Context:
    """A job as far as it was played."""

    job: Job
    records: list[EpisodeRecord] = field(default_factory=list)
    """Of its finished episodes."""
    observations: list[Any] = field(default_factory=list)
    """Of the episode at hand, where they are to be recorded; its actions likewise."""
    actions: list[Any] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    """Of the episode at hand."""
    length: int = 0
    """Its timesteps so far."""

    @property
    def seed(self) -> int:
        """Of the episode at hand."""
        return self.job.seeds[len(self.records)]

    @property
    def is_finished(self) -> bool:
        """Whether all its episodes were played."""
        return len(self.records) == len(self.job.seeds)

    def close(self, failure: str = "") -> None:
        """Record the episode at hand; the next one begins empty."""
        total = None if failure else float(np.sum(self.rewards))
        self.records.append(
            EpisodeRecord(
                task=self.job.spec.id,
                prompt=self.job.part,
                seed=self.seed,
                order=len(self.records),
                total_return=total,
                length=self.length,
                success=succeeded(total) if total is not None and self.job.spec.success else None,
                failure=failure,
            )
        )
        self.observations, self.actions, self.rewards, self.length = [], [], [], 0

    def fail(self, reason: str) -> None:
        """Record the episode at hand as failed, and those that were to follow it."""
        self.close(reason)
        while not self.is_finished:
            self.close("not played: an episode before it in its context failed")

    def played(self, *, terminated: bool) -> Played:
        """The episode at hand, which has come to its end."""
        return Played(
            spec=self.job.spec,
            part=self.job.part,
            seed=self.seed,
            observations=self.observations,
            actions=self.actions,
            rewards=self.rewards,
            terminated=terminated,
        )


def rollouts(
    actor: Acts, simulators: Simulators, jobs: Iterable[Job], *, recorder: Recorder | None = None
) -> Iterator[list[EpisodeRecord]]:
    """Play all jobs, as many at a time as the actor has sessions, and yield the records of each as it is finished.

    All sessions step together; one whose job is finished takes the next, be it of another task. An episode that
    cannot be prompted, does not fit the context, or whose simulator raises, hangs, dies or returns what is not of its
    space or no number, is recorded with the reason as its `failure`, and so are those that were to follow it in its
    context; the others go on. Raises `UserError` where the checkpoint computes no numbers, and what `simulators`
    raise.
    """
    return _Rollouts(actor, simulators, jobs, recorder).play()


class _Rollouts:
    """Sessions of an actor and the slots of simulators of the same numbers."""

    def __init__(self, actor: Acts, simulators: Simulators, jobs: Iterable[Job], recorder: Recorder | None) -> None:
        self.actor, self.simulators, self.recorder = actor, simulators, recorder
        self.waiting = iter(jobs)
        self.playing: dict[int, _Context] = {}
        self.requests: dict[int, Request] = {}
        """What is asked of the simulators next."""

    def play(self) -> Iterator[list[EpisodeRecord]]:
        """Yield the records of each job as it is finished."""
        for session in range(self.actor.num_sessions):
            yield from self._take_next(session)
        while self.requests:
            asked, self.requests = self.requests, {}
            for session, answer in sorted(self.simulators.exchange(asked).items()):
                if session in self.playing:
                    self._take_in(session, answer)
                    if self.playing[session].is_finished:
                        yield self.playing.pop(session).records
                        yield from self._take_next(session)
            for session, action in self.actor.decide().items():
                context = self.playing[session]
                context.length += 1
                if self.recorder is not None:
                    context.actions.append(action)
                self.requests[session] = Act(action=action)

    def _take_next(self, session: int) -> Iterator[list[EpisodeRecord]]:
        """Begin the next job; yields the records of those that cannot begin."""
        for job in self.waiting:
            context = _Context(job=job)
            try:
                self._begin(session, context)
            except UserError as error:
                context.fail(str(error))
                yield context.records
                continue
            return

    def _begin(self, session: int, context: _Context) -> None:
        job = context.job
        self.actor.reset(session, job.layout, job.prompt(), seed=job.seeds[0])
        self.playing[session] = context
        self.requests[session] = Begin(spec=job.spec, seed=job.seeds[0])

    def _take_in(self, session: int, answer: Answer) -> None:
        context = self.playing[session]
        assert not isinstance(answer, Demonstrated)  # none is asked for
        if isinstance(answer, Failed):
            context.fail(answer.reason)
        elif isinstance(answer, Lost):
            self._begin(session, _Context(job=context.job))
        else:
            try:
                self._go_on(session, context, answer)
            except UserError as error:
                context.fail(str(error))

    def _go_on(self, session: int, context: _Context, moment: Moment) -> None:
        """Take in what a simulator shows."""
        if context.length:  # not at its beginning
            context.rewards.append(finite_reward(moment.reward, f"timestep {context.length - 1}"))
        if self.recorder is not None:
            context.observations.append(moment.observation)
        if not (moment.terminated or moment.truncated):
            self.actor.observe(session, moment.observation, f"timestep {context.length}")
            return
        context.job.layout.observation_tokens(moment.observation, f"timestep {context.length}")  # raises
        if self.recorder is not None:
            self.recorder.keep(context.played(terminated=moment.terminated))
        context.close()
        if not context.is_finished:
            self.actor.go_on(session, context.seed)
            self.requests[session] = Begin(spec=context.job.spec, seed=context.seed)
