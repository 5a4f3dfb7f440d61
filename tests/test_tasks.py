"""The registry of tasks: what it knows, what it suggests, and how a package of yours extends it."""

import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint

import pytest
from toy import Line

import gatito.data.tasks as module
from gatito.data.domains import classic
from gatito.data.tasks import (
    EVALUATION_SEEDS,
    PROMPT_SEEDS,
    Reference,
    TaskSpec,
    get_task,
    reference,
    references,
    registry,
)
from gatito.errors import UserError


@pytest.fixture
def fresh_registry() -> Iterator[None]:
    """The registry is read once; let it be read anew before and after."""
    registry.cache_clear()
    yield
    registry.cache_clear()


def spec(name: str) -> TaskSpec:
    return TaskSpec(id=name, make=Line, expert=lambda env: lambda observation: env.secret[env.place])


def my_tasks() -> list[TaskSpec]:
    return [spec("mine/line")]


def clashing_tasks() -> list[TaskSpec]:
    return [spec("classic/cartpole")]


def failing_tasks() -> list[TaskSpec]:
    raise ImportError("no such simulator")


def straying_tasks() -> list[TaskSpec]:
    return [spec("../../etc")]


def install(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    entry = EntryPoint(name="mine", value=f"test_tasks:{function}", group="gatito.tasks")
    monkeypatch.setattr(module, "entry_points", lambda group: [entry] if group == "gatito.tasks" else [])


def test_at_least_nine_tasks_in_three_domains_are_known() -> None:
    domains = {s.domain for s in registry().values()}
    assert {"classic", "box2d", "babyai", "metaworld"} <= domains
    for domain, least in (("classic", 5), ("box2d", 2), ("babyai", 3), ("metaworld", 3)):
        assert sum(s.domain == domain for s in registry().values()) >= least, domain


def test_task_ids_are_a_domain_and_a_name_in_lower_case() -> None:
    for task, known in registry().items():
        assert known.id == task
        assert re.fullmatch(r"[a-z0-9]+/[a-z0-9]+(-[a-z0-9]+)*", task), task


def test_every_task_names_the_extra_that_installs_it() -> None:
    extras = {s.domain: set(s.modules.values()) for s in registry().values()}
    assert extras.pop("sokoban") == set()  # our own
    assert all(names == {domain} for domain, names in extras.items()), extras


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("classic/cartpol", "classic/cartpole"),
        ("cartpole", "classic/cartpole"),
        ("babyai/go-to-object", "babyai/go-to-obj"),
        ("Box2D/lunar_lander", "box2d/lunar-lander"),
    ],
)
def test_an_unknown_task_is_answered_with_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"unknown task '{typed}'; did you mean '{meant}'"):
        get_task(typed)


def test_a_missing_extra_is_answered_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = module.importlib.util.find_spec
    monkeypatch.setattr(
        module.importlib.util, "find_spec", lambda name, *rest: None if name == "Box2D" else find_spec(name, *rest)
    )
    with pytest.raises(UserError) as error:
        get_task("box2d/lunar-lander")
    assert str(error.value) == "task 'box2d/lunar-lander' needs Box2D: pip install 'gatito[box2d]'"
    assert registry()["box2d/lunar-lander"].missing_extra() == str(error.value)
    assert get_task("classic/cartpole").id == "classic/cartpole"


@pytest.mark.usefixtures("fresh_registry")
def test_an_installed_package_adds_tasks_through_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "mine/line" not in registry()
    registry.cache_clear()
    install(monkeypatch, "my_tasks")
    task = get_task("mine/line")
    assert task.domain == "mine"
    env = task.make()
    observation, _ = env.reset(seed=0)
    policy = task.expert(env)
    assert env.step(policy(observation))[1] == 1.0
    assert "classic/cartpole" in registry()


@pytest.mark.usefixtures("fresh_registry")
def test_a_package_whose_tasks_fail_is_said_and_the_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "failing_tasks")
    with pytest.warns(UserWarning, match=r"no tasks from .*failing_tasks'.*: ImportError: no such simulator"):
        assert "classic/cartpole" in registry()


@pytest.mark.usefixtures("fresh_registry")
def test_a_task_id_that_is_no_domain_and_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "straying_tasks")
    with pytest.warns(UserWarning, match=r"straying_tasks'.*task id '../../etc': allowed is domain/name"):
        assert "../../etc" not in registry()


@pytest.mark.usefixtures("fresh_registry")
def test_a_task_that_is_registered_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "clashing_tasks")
    ours = classic.tasks()[0].make
    with pytest.warns(UserWarning, match="clashing_tasks'.*task 'classic/cartpole' is registered twice; rename one"):
        assert registry()["classic/cartpole"].make.args == ours.args


def test_every_registered_task_has_references_that_an_expert_earned() -> None:
    known = references()
    for task, measured in known.items():
        assert measured.expert > measured.random, task
    assert set(known) - set(registry()) == set()
    assert set(registry()) - set(known) == set(), "gatito tasks --measure all --out gatito/data/references.json"


def test_a_reference_scores_random_as_zero_and_the_expert_as_one() -> None:
    known = Reference(random=-1200.0, expert=-150.0)
    assert known.score(-1200.0) == 0.0
    assert known.score(-150.0) == 1.0
    assert known.score(-675.0) == 0.5
    assert known.score(-1410.0) == pytest.approx(-0.2)


def test_a_task_without_references_says_how_to_measure_them() -> None:
    with pytest.raises(UserError, match=r"'mine/line' has no reference returns; .*gatito tasks --measure mine/line"):
        reference("mine/line")


def test_seeds_of_prompts_and_evaluation_leave_room_and_fit_32_bits() -> None:
    assert 0 < EVALUATION_SEEDS < PROMPT_SEEDS < 2**31
    assert PROMPT_SEEDS - EVALUATION_SEEDS > 10**6
