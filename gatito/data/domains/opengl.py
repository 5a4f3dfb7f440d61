"""Which OpenGL backend MuJoCo draws with on this machine. MuJoCo and dm_control read `MUJOCO_GL` as they import."""

import os
import subprocess
import sys
from functools import cache

from gatito.errors import UserError

_PROBE = (
    "import mujoco; model = mujoco.MjModel.from_xml_string('<mujoco/>'); data = mujoco.MjData(model);"
    "renderer = mujoco.Renderer(model, 8, 8); renderer.update_scene(data); renderer.render()"
)


@cache
def opengl_backend() -> str | None:
    """Return the first MuJoCo backend that renders, tried in a process of its own (0.4 s): it may crash."""
    wanted = os.environ.get("MUJOCO_GL")
    for backend in [wanted] if wanted else ["egl", "osmesa", "glfw"]:
        probe = [sys.executable, "-c", _PROBE]
        try:
            done = subprocess.run(probe, env={**os.environ, "MUJOCO_GL": backend}, capture_output=True, timeout=60)
        except subprocess.TimeoutExpired:
            continue
        if done.returncode == 0:
            return backend
    return None


def choose_opengl(needed_by: str | None = None) -> None:
    """Point MuJoCo to the backend that works, or to none; to be called before the simulator is imported.

    Raises `UserError` where none works and something needs it, such as `task 'dmc/pendulum-swingup-pixels'`.
    """
    backend = opengl_backend()
    if needed_by and backend is None:
        raise UserError(
            f"{needed_by} draws with OpenGL, and no backend works that MUJOCO_GL allows (egl, osmesa or glfw); "
            "install libegl1 or libosmesa6 (Debian: apt-get install libegl1 libgl1-mesa-dri), and leave MUJOCO_GL "
            "unset or set it to egl or osmesa"
        )
    os.environ["MUJOCO_GL"] = backend or "disable"
