"""Plays episodes: what simulators show becomes tokens, and what the model chooses is done in them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from gatito.data.recording import finite_reward
from gatito.data.tasks import TaskSpec
from gatito.errors import UserError
from gatito.eval.actor import Actor
from gatito.eval.prompts import Prompt
from gatito.eval.scores import EpisodeRecord
from gatito.eval.simulators import Act, Answer, Begin, Failed, Lost, Moment, Request, Simulators
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
    """An episode as it was played: T + 1 observations, T actions and rewards."""

    spec: TaskSpec
    part: Prompt
    seed: int
    observations: list[Any]
    actions: list[Any]
    rewards: list[float]
    terminated: bool


class Recorder(Protocol):
    """Keeps whole episodes."""

    def keep(self, played: Played) -> None:
        """Keep one that was finished."""
        ...


@dataclass(kw_only=True, eq=False)
class _Playing:
    """A context as far as it was played."""

    job: Job
    records: list[EpisodeRecord] = field(default_factory=list)
    """Of its finished episodes."""
    observations: list[Any] = field(default_factory=list)
    actions: list[Any] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    length: int = 0

    @property
    def seed(self) -> int:
        """Of the episode at hand."""
        return self.job.seeds[len(self.records)]

    @property
    def where(self) -> str:
        """Names the timestep at hand."""
        return f"task {self.job.spec.id!r}, seed {self.seed}, timestep {self.length}"

    def record(self, failure: str = "") -> None:
        """Close the episode at hand; the next one begins empty."""
        total = None if failure else float(np.sum(self.rewards))
        success = bool(total) if total is not None and self.job.spec.success else None
        self.records.append(
            EpisodeRecord(
                task=self.job.spec.id,
                prompt=self.job.part,
                seed=self.seed,
                order=len(self.records),
                total_return=total,
                length=self.length,
                success=success,
                failure=failure,
            )
        )
        self.observations, self.actions, self.rewards, self.length = [], [], [], 0

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
    actor: Actor,
    simulators: Simulators,
    jobs: Iterable[Job],
    *,
    recorder: Recorder | None = None,
    on_episode: Callable[[], object] = lambda: None,
) -> Iterator[list[EpisodeRecord]]:
    """Play all jobs, as many at a time as the actor has sessions, and yield the records of each as it is finished.

    All sessions step together; one whose job is finished takes the next, be it of another task. An episode whose
    simulator raises, hangs, dies or returns what is not of its space or no number is recorded with the reason as its
    `failure`, and so are those that were to follow it in its context; the others go on.
    """
    waiting = iter(jobs)
    playing: dict[int, _Playing] = {}
    requests: dict[int, Request] = {}

    def begin(session: int, job: Job) -> None:
        playing[session] = _Playing(job=job)
        actor.reset(session, job.layout, job.prompt(), seed=job.seeds[0])
        requests[session] = Begin(spec=job.spec, seed=job.seeds[0])

    def take_next(session: int) -> None:
        job = next(waiting, None)
        if job is not None:
            begin(session, job)

    def go_on(session: int, answer: Moment) -> list[EpisodeRecord]:
        """Take in what a simulator shows; returns the records of a job that is finished."""
        own = playing[session]
        if own.length:  # not at its beginning
            own.rewards.append(finite_reward(answer.reward, own.where))
        ended = answer.terminated or answer.truncated
        if recorder is not None:
            own.observations.append(answer.observation)
        if not ended:
            actor.observe(session, answer.observation, own.where)
            return []
        if recorder is not None:
            recorder.keep(own.played(terminated=answer.terminated))
        own.record()
        on_episode()
        if len(own.records) < len(own.job.seeds):
            actor.go_on(session, own.seed)
            requests[session] = Begin(spec=own.job.spec, seed=own.seed)
            return []
        return own.records

    def fail(session: int, reason: str) -> list[EpisodeRecord]:
        own = playing[session]
        own.record(reason)
        on_episode()
        while len(own.records) < len(own.job.seeds):
            own.record("not played: an episode before it in its context failed")
            on_episode()
        return own.records

    def answered(session: int, answer: Answer) -> list[EpisodeRecord]:
        if isinstance(answer, Failed):
            return fail(session, f"{playing[session].where}: {answer.reason}")
        if isinstance(answer, Lost):
            begin(session, playing[session].job)
            return []
        try:
            return go_on(session, answer)
        except UserError as error:
            return fail(session, str(error))

    for session in range(actor.num_sessions):
        take_next(session)
    while requests:
        asked, requests = requests, {}
        for session, answer in sorted(simulators.exchange(asked).items()):
            if session in playing and (records := answered(session, answer)):
                del playing[session]
                yield records
                take_next(session)
        for session, action in actor.decide().items():
            own = playing[session]
            own.length += 1
            if recorder is not None:
                own.actions.append(action)
            requests[session] = Act(action=action)
