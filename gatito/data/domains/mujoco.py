"""Gymnasium's MuJoCo tasks for which a small controller reaches the environment's own reward threshold."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from gatito.data.domains.opengl import choose_opengl
from gatito.data.tasks import Policy, TaskSpec

IMAGE_SIZE = 200
"""Width and height of a rendered frame, pixels."""

PENDULUM = np.array([0.94, 10.6, 1.63, 1.97])
"""LQR gains on [m, rad, m/s, rad/s] of the model linearised by differences, cost diag(1, 10, 1, 1) and 0.1 u^2."""

DOUBLE_PENDULUM = np.array([0.093, 0.787, 4.126, 0.151, 0.535, 0.615])
"""The same on [m, rad, rad] and their velocities, cost diag(1, 10, 10, 0.1, 1, 1) and u^2."""

UPPER_ARM, FOREARM = 0.1, 0.11
"""Metres from shoulder to elbow and from elbow to fingertip of the reacher."""

Observation = NDArray[np.float64]


def inverted_pendulum(observation: Observation) -> NDArray[np.float32]:
    """Push the cart by a linear feedback."""
    return np.clip([PENDULUM @ observation], -3.0, 3.0).astype(np.float32)


def inverted_double_pendulum(observation: Observation) -> NDArray[np.float32]:
    """Push the cart by a linear feedback; the angles are given as sines and cosines."""
    angles = np.arctan2(observation[1:3], observation[3:5])
    state = np.concatenate([observation[:1], angles, observation[5:8]])
    return np.clip([-DOUBLE_PENDULUM @ state], -1.0, 1.0).astype(np.float32)


def reacher(observation: Observation) -> NDArray[np.float32]:
    """Turn both joints towards the nearer of the two postures that touch the target.

    Effort costs as much as distance, so the force grows less than the angle that is missing: a PD law whose
    stiffness falls with that angle, and whose damping keeps to its root.
    """
    angles = np.arctan2(observation[2:4], observation[:2])
    missing = missing_angles(angles, observation[4:6])
    stiffness = 0.8 / (1.0 + np.linalg.norm(missing))
    return np.clip(stiffness * missing - 0.09 * np.sqrt(stiffness) * observation[6:8], -1.0, 1.0).astype(np.float32)


def missing_angles(angles: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return by how much to turn shoulder and elbow (rad) to have the fingertip at the target (m)."""
    reach = (target @ target - UPPER_ARM**2 - FOREARM**2) / (2 * UPPER_ARM * FOREARM)
    postures = []
    for elbow in np.arccos(np.clip(reach, -1.0, 1.0)) * np.array([1.0, -1.0]):
        bend = np.arctan2(FOREARM * np.sin(elbow), UPPER_ARM + FOREARM * np.cos(elbow))
        shoulder = np.arctan2(target[1], target[0]) - bend - angles[0]
        postures.append(np.array([(shoulder + np.pi) % (2 * np.pi) - np.pi, elbow - angles[1]]))
    return min(postures, key=lambda posture: float(np.abs(posture).sum()))


def swimmer(env: gym.Env[Any, Any]) -> Policy:
    """Follow two sine waves with a PD law: an open-loop gait (Raffin et al. 2023), steered by the body's angle.

    Period, amplitudes, lag and gains were found by CMA-ES. Observations are the angles of body and joints,
    then velocities.
    """
    timestep = 0

    def act(observation: Observation) -> NDArray[np.float32]:
        nonlocal timestep
        phase = 2 * np.pi * timestep / 36.5  # of a period of 1.46 s
        timestep += 1
        wave = np.array([1.53 * np.sin(phase), 1.15 * np.sin(phase - 0.67)])
        missing = wave + 0.52 * observation[0] - observation[1:3]
        return np.clip(5.4 * missing - 0.35 * observation[6:8], -1.0, 1.0).astype(np.float32)

    return act


def make(name: str, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Build Gymnasium's environment of this name, such as `Reacher-v5`."""
    choose_opengl(f"a video of {name}" if render_mode else None)
    return gym.make(name, render_mode=render_mode, width=IMAGE_SIZE, height=IMAGE_SIZE)


def tasks() -> list[TaskSpec]:
    """Return the four tasks of this domain.

    Left out: Pusher, whose threshold of 0 its negative rewards never reach; HalfCheetah, where oscillators found
    by CMA-ES in five minutes earn 3000 of 4800.
    """
    rows: list[tuple[str, str, Any, float]] = [
        ("inverted-pendulum", "InvertedPendulum-v5", partial(_same_policy, inverted_pendulum), 0.05),
        (
            "inverted-double-pendulum",
            "InvertedDoublePendulum-v5",
            partial(_same_policy, inverted_double_pendulum),
            0.0,
        ),
        ("reacher", "Reacher-v5", partial(_same_policy, reacher), 0.1),
        ("swimmer", "Swimmer-v5", swimmer, 0.1),
    ]
    return [
        TaskSpec(
            id=f"mujoco/{name}",
            make=partial(make, environment),
            expert=expert,
            noise=noise,
            modules={"mujoco": "mujoco", "imageio": "mujoco"},
            license="MIT AND Apache-2.0",
        )
        for name, environment, expert, noise in rows
    ]


def _same_policy(policy: Policy, env: gym.Env[Any, Any]) -> Policy:
    """Most of the experts above need no environment."""
    return policy
