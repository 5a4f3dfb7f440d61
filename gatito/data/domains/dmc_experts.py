"""Control laws for the DeepMind Control Suite: functions of the physics, whose clock drives what oscillates.

They read the state and not the observation, so that one law serves a task and its variant with pixels. Angles are
in rad, lengths in m, forces as shares of the actuator's range. Where a docstring says "tuned", CMA-ES found the
numbers (Hansen 2016), on seeds outside those of the references.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Physics = Any
"""A `dm_control.mujoco.Physics` of the task's domain."""

Law = Callable[[Physics], NDArray[np.float64]]
"""Maps the physics to an action, which is clipped to the actuators' range."""

CART_POLE = np.array([2.78, 10.73, 2.37, 2.83])
"""LQR gains on [m, rad, m/s, rad/s] of the linearised model, cost diag(5.2, 1, 0.1, 0.1) and 0.56 u^2."""

SPRINGS = np.array([0.098, -0.098, 2.395, 0.456])
"""LQR gains of lqr_2_1 on [m, m, m/s, m/s]: the discrete Riccati solution for the springs that seed 0 draws."""

LINK = 0.12
"""Length of each of the reacher's two links, m."""

WRIST_LIMIT = 2.75
"""The reacher's wrist turns that far, rad."""


def wrapped(angle: Any) -> Any:
    """Return the angle in [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def balance(physics: Physics) -> NDArray[np.float64]:
    """Push the cart by a linear feedback."""
    (x, angle), (velocity, spin) = physics.data.qpos, physics.data.qvel
    return np.array([CART_POLE @ (x, wrapped(angle), velocity, spin)])


def swing_up(physics: Physics) -> NDArray[np.float64]:
    """Pump energy into the pole while the cart is held near the centre, and balance once it comes close. Tuned."""
    (x, angle), (velocity, spin) = physics.data.qpos, physics.data.qvel
    angle = wrapped(angle)
    if abs(angle) < 0.93 and abs(angle + 0.2 * spin) < 0.93:  # and within 0.2 s
        return balance(physics)
    missing_energy = 0.49 * (1 - np.cos(angle)) - 0.0167 * spin**2  # J, for a rod of 0.1 kg and 1 m
    pump = np.clip(-2.9 * missing_energy * np.tanh(18 * spin * np.cos(angle)), -1.0, 1.0)
    return np.array([pump - 1.37 * x - 0.23 * velocity])


def pendulum(physics: Physics) -> NDArray[np.float64]:
    """Push with the velocity until the energy is that of standing, then hold with a PD law near the top."""
    angle, spin = wrapped(physics.data.qpos[0]), physics.data.qvel[0]
    if abs(angle) < 0.3 and abs(spin) < 3.0:
        return np.array([-20.0 * angle - 4.0 * spin])
    missing_energy = 4.9 * (1 - np.cos(angle)) - 0.125 * spin**2  # J, for 1 kg at 0.5 m
    return np.array([np.sign(spin) * min(1.0, 5 * missing_energy) if missing_energy < 0 else np.sign(spin)])


def point_mass(physics: Physics) -> NDArray[np.float64]:
    """Pull to the centre with a PD law, through the directions in which the two actuators of the episode pull."""
    directions = physics.model.wrap_prm[:4].reshape(2, 2)
    return np.linalg.solve(directions.T, -40.0 * physics.data.qpos - 12.0 * physics.data.qvel)


def reacher(physics: Physics) -> NDArray[np.float64]:
    """Turn both joints by a PD law to the nearer of the two postures that touch the target."""
    x, y = physics.named.model.geom_pos["target", :2]
    wrist = min(np.arccos(np.clip((x * x + y * y) / (2 * LINK**2) - 1, -1.0, 1.0)), WRIST_LIMIT)
    postures = [np.array([np.arctan2(y, x) - side * wrist / 2, side * wrist]) for side in (1, -1)]
    missing = [posture - physics.data.qpos for posture in postures]
    shortest = min((np.array([wrapped(m[0]), m[1]]) for m in missing), key=lambda m: float(np.abs(m).max()))
    return 4.0 * shortest - 0.4 * physics.data.qvel


def springs(physics: Physics) -> NDArray[np.float64]:
    """Pull the first of two masses by the optimal linear feedback."""
    return np.array([-SPRINGS @ (*physics.data.qpos, *physics.data.qvel)])


def ball_in_cup(physics: Physics) -> NDArray[np.float64]:
    """Jerk the ball up by its string, beside the cup, then drop the cup and move it below the ball. Tuned."""
    cup_x, cup_z, ball_x, ball_z = physics.data.qpos
    cup_velocity, _, ball_velocity, rise = physics.data.qvel
    x, z = ball_x - cup_x, ball_z - 0.4 - cup_z  # of the ball, from the centre of the cup's rim

    def towards(goal: float) -> float:
        return 4 * goal + 54 * (goal - cup_x) + 0.44 * cup_velocity  # 4 goal: the spring at rest there

    below_ball = towards(ball_x + 0.05 * ball_velocity)
    if z > -0.09 and abs(x) < 0.045:
        return np.array([below_ball, 1.0 if z > 0 else 0.0])  # catch it on its way, then keep still
    if z > -0.1:
        return np.array([below_ball, -1.0])
    is_taut = np.hypot(x, z + 0.108) > 0.25  # of 0.3 m; the string is tied 0.108 m below the rim
    pull = rise < 2.2 and (is_taut or abs(rise) < 0.3)  # m/s; a ball that rests is on the floor
    return np.array([towards(ball_x - 0.3 * np.copysign(1.0, x)), 1.0 if pull else -1.0])


def finger_spin(physics: Physics) -> NDArray[np.float64]:
    """Flick twice a turn: both joints follow sine waves of the spinner's angle, or of time until it turns. Tuned."""
    *angles, hinge = physics.data.qpos
    *velocities, spin = physics.data.qvel
    phase = -2 * hinge if spin < -4 else 14.0 * physics.data.time
    wanted = np.array([-0.81 + 0.95 * np.sin(phase - 1.3), 1.43 + 0.94 * np.sin(phase - 3.1)])
    return 2.5 * (wanted - angles) - 0.058 * np.array(velocities)


def fish_upright(physics: Physics) -> NDArray[np.float64]:
    """Roll and pitch upright by the twist of the tail and the tilt of the fins, which beat all the time. Tuned."""
    roll, pitch, upright = physics.named.data.xmat["torso"].reshape(3, 3)[2]  # the vertical, seen by the fish
    if upright < 0:  # upside down: turn at full strength
        roll, pitch = np.array([roll, pitch]) / (np.hypot(roll, pitch) + 1e-6)
    spin = physics.named.data.sensordata["gyro"][1]
    phase = 8.2 * physics.data.time
    both, apart = -1.6 * np.sin(phase) - 0.84 * pitch, 1.04 * roll + 1.28 * spin
    return np.array([0.0, -roll - 1.05 * spin, -3.6 * np.cos(phase), both + apart, both - apart])
