"""Work on a Ray of this machine."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gatito.data.engine import IN_FLIGHT, RayEngine, ray_engine
from gatito.errors import UserError

pytestmark = pytest.mark.slow

WORKERS = 2


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # workers import this file
        with ray_engine(WORKERS) as engine:
            yield engine


def collected(root: Path, *more: str) -> subprocess.CompletedProcess[str]:
    tasks = ["--tasks", "classic/cartpole,classic/acrobot", "--episodes", "30", "--out", str(root)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "gatito", "data", "collect", *tasks, *more]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def in_a_process(*command: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    ended = subprocess.run(
        [sys.executable, "-m", "gatito", *command], capture_output=True, text=True, env=environment, timeout=300
    )
    assert ended.returncode == 0, ended.stderr


def hashes(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def dies_until(job: tuple[Path, int]) -> int:
    """Kill this worker, hard, as often as asked; then return how often that was."""
    deaths, wanted = job
    if (died := len(list(deaths.iterdir()))) < wanted:
        (deaths / str(died)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return died


def refuses_two(job: int) -> int:
    if job == 2:
        raise UserError("2 is refused")
    return job * job


def test_ray_collects_the_same_bytes_as_the_local_engine(tmp_path: Path) -> None:
    local, ray = collected(tmp_path / "local"), collected(tmp_path / "ray", "--engine", "ray")
    assert (local.returncode, ray.returncode) == (0, 0), ray.stderr
    assert hashes(tmp_path / "local") == hashes(tmp_path / "ray")
    assert len(hashes(tmp_path / "ray")) > 60
    assert "ray" not in ray.stderr.lower().replace(str(tmp_path), "")  # no log noise


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_job_survives_its_killed_workers(engine: RayEngine, tmp_path: Path, deaths: int) -> None:
    jobs = [(tmp_path / "dies", deaths), *((tmp_path / "lives", 0) for _ in range(4))]
    for folder, _ in jobs:
        folder.mkdir(exist_ok=True)
    results = sorted(outcome.value() for outcome in engine.run(dies_until, jobs))
    assert results == [0, 0, 0, 0, deaths]


def test_a_job_that_kills_every_worker_is_one_sentence_and_the_others_go_on(
    engine: RayEngine, tmp_path: Path
) -> None:
    for name in ("dies", "lives"):
        (tmp_path / name).mkdir()
    outcomes = list(engine.run(dies_until, [(tmp_path / "dies", 99), (tmp_path / "lives", 0)]))
    errors = [str(outcome.error) for outcome in outcomes if outcome.error is not None]
    assert errors == [
        "a Ray worker died 4 times at the same job; what was finished is kept, the same command continues"
    ]
    assert [outcome.result for outcome in outcomes if outcome.error is None] == [0]


def test_a_refused_job_is_its_own_sentence_and_the_others_go_on(engine: RayEngine) -> None:
    outcomes = {outcome.job: outcome for outcome in engine.run(refuses_two, [1, 2, 3])}
    assert [outcomes[1].value(), outcomes[3].value()] == [1, 9]
    with pytest.raises(UserError) as refused:
        outcomes[2].value()
    assert str(refused.value) == "2 is refused"
    assert type(refused.value) is UserError


def test_jobs_are_read_as_workers_become_free(engine: RayEngine) -> None:
    read: list[int] = []
    outcomes = engine.run(refuses_two, (read.append(job) or job for job in range(10, 100)))
    next(outcomes)
    assert len(read) == IN_FLIGHT * WORKERS
    outcomes.close()


def test_ray_builds_and_imports_the_same_bytes_as_the_local_engine(tmp_path: Path) -> None:
    assert collected(tmp_path / "data").returncode == 0
    mixture = tmp_path / "mixture.yaml"
    sources = [f"minari:{tmp_path}/data/classic/{task}/noisy-v0" for task in ("cartpole", "acrobot")]
    entries = "".join(f'  - {{source: "{source}"}}\n' for source in (*sources, "captions:digits"))
    mixture.write_text(f"datasets:\n{entries}held_out: {{episodes: 0.2}}\n")
    for engine in ("local", "ray"):
        store, dataset = str(tmp_path / f"{engine}-store"), str(tmp_path / f"{engine}-dataset")
        in_a_process("data", "build", "--config", str(mixture), "--out", store, "--engine", engine)
        in_a_process("data", "import", sources[0], "--task", "toy/t", "--out", dataset, "--engine", engine)
    assert hashes(tmp_path / "ray-store") == hashes(tmp_path / "local-store")
    assert hashes(tmp_path / "ray-dataset") == hashes(tmp_path / "local-dataset")


def collecting(root: Path, episodes: int = 250) -> subprocess.Popen[bytes]:
    """A collection on Ray that takes some seconds for 250 episodes."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    options = ["--tasks", "classic/acrobot", "--episodes", str(episodes), "--engine", "ray", "--out", str(root)]
    command = [sys.executable, "-m", "gatito", "data", "collect", *options]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let what runs in the background ignore it
    with root.with_suffix(".log").open("a") as log:
        return subprocess.Popen(command, stderr=log, env=environment)


def players_of(collecting: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Ray's workers that play for a collection, once there are some."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and collecting.poll() is None:
        found = psutil.Process(collecting.pid).children(recursive=True)
        if players := [child for child in found if "_play_on_ray" in child.name() + "".join(child.cmdline())]:
            return players
        time.sleep(0.05)
    raise AssertionError("no worker plays")


def test_a_collection_of_which_a_worker_is_killed_is_the_same(tmp_path: Path) -> None:
    running = collecting(tmp_path / "ray")
    players_of(running)[0].kill()
    assert running.wait(120) == 0, (tmp_path / "ray.log").read_text()
    options = ["--tasks", "classic/acrobot", "--episodes", "250", "--processes", "1", "--out", str(tmp_path / "here")]
    in_a_process("data", "collect", *options)
    assert hashes(tmp_path / "ray") == hashes(tmp_path / "here")


def test_an_interrupted_collection_leaves_no_process_and_continues(tmp_path: Path) -> None:
    running = collecting(tmp_path / "ray", episodes=1500)  # it must not be over before it is interrupted
    players_of(running)
    children = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 130
    assert "gatito: interrupted" in (tmp_path / "ray.log").read_text()
    assert psutil.wait_procs(children, timeout=30)[1] == []
    again = collecting(tmp_path / "ray", episodes=1500)
    assert again.wait(300) == 0
    assert (tmp_path / "ray/classic/acrobot/noisy-v0").is_dir()


def slow_first(job: int) -> int:
    time.sleep(1.0 if job == 0 else 0.0)
    return job


def test_results_in_order_wait_for_the_first_and_few_jobs_run_ahead(engine: RayEngine) -> None:
    handed: list[int] = []

    def jobs() -> Iterator[int]:
        for job in range(20):
            handed.append(job)
            yield job

    found = []
    for outcome in engine.run(slow_first, jobs(), in_order=True):
        assert len(handed) <= len(found) + IN_FLIGHT * WORKERS
        found.append(outcome.value())
    assert found == list(range(20))
