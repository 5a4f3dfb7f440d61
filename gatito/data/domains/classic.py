"""Gymnasium's classic control and Box2D tasks, with experts that are functions of the observation."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from gatito.data.tasks import Policy, TaskSpec

Observation = NDArray[np.floating]


def cart_pole(observation: Observation) -> np.int64:
    """Push towards the side on which a linear feedback (gains of an LQR solution) is positive."""
    return np.int64(observation @ (1.0, 1.6, 18.7, 3.4) > 0)


def mountain_car(observation: Observation) -> np.int64:
    """Push right while the velocity lies between two curves over the position, otherwise left."""
    position, velocity = observation
    lower = min(-0.09 * (position + 0.25) ** 2 + 0.03, 0.3 * (position + 0.9) ** 4 - 0.008)
    upper = -0.07 * (position + 0.38) ** 2 + 0.07
    return np.int64(2 if lower < velocity < upper else 0)


def mountain_car_continuous(observation: Observation) -> NDArray[np.float32]:
    """Push with the velocity: each swing gains height. At 0.4 the push costs least per height, 97 instead of 89."""
    return np.array([0.4 if observation[1] >= 0 else -0.4], np.float32)


def acrobot(observation: Observation) -> np.int64:
    """Turn the elbow against the first joint's velocity, which pumps energy into the swing."""
    return np.int64(2 if observation[4] < 0 else 0)


def pendulum(observation: Observation) -> NDArray[np.float32]:
    """Pump energy until the pendulum stands within 45 degrees of the top, then hold it with a PD law."""
    cosine, sine, velocity = (float(value) for value in observation)
    angle = np.arctan2(sine, cosine)
    missing_energy = 5.0 - (velocity**2 / 6.0 + 5.0 * cosine)  # J, for mass and length 1 and g = 10
    torque = -12.0 * angle - 3.0 * velocity if cosine > 0.7 else 0.5 * velocity * missing_energy
    return np.array([np.clip(torque, -2.0, 2.0)], np.float32)


@dataclass(frozen=True, kw_only=True)
class Descent:
    """Gains of gymnasium's heuristic for LunarLander; the defaults are its own."""

    drift: float = 1.0
    """Wanted angle per horizontal velocity."""
    max_angle: float = 0.4
    hover: float = 0.55
    """Wanted height per distance from the pad's centre."""
    angle: float = 0.5
    angular_velocity: float = 1.0
    height: float = 0.5
    fall: float = 0.5
    """Lift per vertical velocity."""
    fall_in_contact: float = 0.5

    def lift_and_turn(self, observation: Observation) -> tuple[float, float]:
        """Return how much lift and turn is wanted."""
        x, y, velocity_x, velocity_y, angle, angular_velocity, *contacts = map(float, observation)
        if any(contacts):
            return -self.fall_in_contact * velocity_y, 0.0
        wanted_angle = min(max(0.5 * x + self.drift * velocity_x, -self.max_angle), self.max_angle)
        turn = self.angle * (wanted_angle - angle) - self.angular_velocity * angular_velocity
        return self.height * (self.hover * abs(x) - y) - self.fall * velocity_y, turn


ENGINES = Descent(
    drift=1.21,
    max_angle=0.32,
    hover=0.42,
    angle=0.55,
    angular_velocity=1.47,
    height=0.44,
    fall=0.71,
    fall_in_contact=0.66,
)
"""Tuned for engines that are on or off, without and with noise: 264 instead of 239."""


def lunar_lander(observation: Observation) -> np.int64:
    """Fire the engine that is wanted most, if it is wanted enough."""
    lift, turn = ENGINES.lift_and_turn(observation)
    if lift > abs(turn) and lift > 0.04:
        return np.int64(2)
    if abs(turn) > 0.1:
        return np.int64(1 if turn > 0 else 3)
    return np.int64(0)


def lunar_lander_continuous(observation: Observation) -> NDArray[np.float32]:
    """The same controller with throttles."""
    lift, turn = Descent().lift_and_turn(observation)
    return np.clip(np.array([lift * 20.0 - 1.0, -turn * 20.0]), -1.0, 1.0).astype(np.float32)


def tasks() -> list[TaskSpec]:
    """Return the seven tasks of this domain."""
    lander = partial(gym.make, "LunarLander-v3")
    rows: list[tuple[str, Callable[..., gym.Env[Any, Any]], Policy, float]] = [
        ("classic/cartpole", partial(gym.make, "CartPole-v1"), cart_pole, 0.1),
        ("classic/mountain-car", partial(gym.make, "MountainCar-v0"), mountain_car, 0.05),
        ("classic/acrobot", partial(gym.make, "Acrobot-v1"), acrobot, 0.1),
        ("classic/pendulum", partial(gym.make, "Pendulum-v1"), pendulum, 0.1),
        (
            "classic/mountain-car-continuous",
            partial(gym.make, "MountainCarContinuous-v0"),
            mountain_car_continuous,
            0.1,
        ),
        ("box2d/lunar-lander", lander, lunar_lander, 0.1),
        ("box2d/lunar-lander-continuous", partial(lander, continuous=True), lunar_lander_continuous, 0.1),
    ]
    modules = {"classic": "pygame", "box2d": "Box2D"}
    return [
        TaskSpec(
            id=name,
            make=make,
            expert=partial(_same_policy, policy),
            noise=noise,
            modules={modules[name.split("/")[0]]: name.split("/")[0]},
            license="MIT AND Zlib" if name.startswith("box2d") else "MIT",
        )
        for name, make, policy, noise in rows
    ]


def _same_policy(policy: Policy, env: gym.Env[Any, Any]) -> Policy:
    """The experts above need no environment."""
    return policy
