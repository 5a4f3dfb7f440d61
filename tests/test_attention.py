"""Attention that is shown is the attention that acts, timestep by timestep."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy import TRUNKS, ToyEnv, hidden_of, layout_of, tiny_model, toy_sequence

from gatito.data.tasks import TaskSpec
from gatito.errors import UserError
from gatito.eval.actor import Actor
from gatito.eval.attention import AttentionView, attention_weights, by_timestep, causal_weights, view_attention
from gatito.eval.attention_chart import MAX_COLUMNS, attention_picture
from gatito.eval.evaluate import CheckedTask
from gatito.eval.report import Report, write_report
from gatito.eval.results import Results
from gatito.eval.scores import Baseline
from gatito.tokenizers import Layout, TextTokenizer, TokenSequence, Vocabulary
from gatito.tokenizers.sequence import concatenate
from gatito.tokenizers.trunk import Trunk

OBSERVATION = spaces.Dict(
    image=spaces.Box(0, 255, (16, 32, 3), np.uint8),
    mission=spaces.Text(24),
    at=spaces.Box(-1.0, 1.0, (2,), np.float32),
)
ACTION = spaces.MultiDiscrete([3, 2])
LENGTH = 12


@pytest.fixture(scope="module")
def layout(vocabulary: Vocabulary, text: TextTokenizer) -> Layout:
    return layout_of(ToyEnv(OBSERVATION, ACTION), vocabulary, text)


@pytest.fixture(scope="module")
def episode(layout: Layout) -> TokenSequence:
    return toy_sequence(ToyEnv(OBSERVATION, ACTION, length=4), layout, seed=5)


@pytest.fixture
def toy(vocabulary: Vocabulary, layout: Layout) -> Callable[[str], tuple[Actor, CheckedTask]]:
    """An actor by the name of a trunk, and the one task `toy/task`."""
    spec = TaskSpec(
        id="toy/task", make=lambda render_mode=None: ToyEnv(OBSERVATION, ACTION, LENGTH), expert=lambda e: e
    )
    task = CheckedTask(spec=spec, layout=layout, baseline=Baseline(random=None, expert=None), env=spec.make())

    def make(trunk: str) -> tuple[Actor, CheckedTask]:
        return Actor(tiny_model(vocabulary, **TRUNKS[trunk])), task

    return make


@pytest.fixture
def view() -> AttentionView:
    """Three timesteps of a prompt, three of an episode's fifth to seventh; two layers."""
    weights = np.array([[0.1, 0.1, 0.0, 0.25, 0.05, 0.5], [0.0, 0.0, 0.0, 0.0, 0.36, 0.64]])
    token = {"id": 5, "modality": "text", "meaning": "'<i>'", "local_position": 0, "loss_mask": False}
    return AttentionView(
        task="toy/<task>",
        seed=11,
        step=6,
        prompt_timesteps=3,
        latents=0,
        decoded_actions=False,
        weights=weights,
        action_weights=weights / 4,
        rows=[token],
        image=np.zeros((8, 8, 3), np.uint8),
    )


def split(sequence: TokenSequence, layout: Layout) -> tuple[list[TokenSequence], TokenSequence]:
    """Two timesteps as prompt, whole ones, and the observation of the last."""
    patch = layout.vocabulary.patch
    last = sequence.timesteps(3, 4, patch)
    past = [sequence.timesteps(0, 2, patch), sequence.timesteps(2, 3, patch)]
    return past, last.head(len(last) - layout.num_action_tokens, patch)


@pytest.mark.parametrize("trunk", TRUNKS)
@torch.inference_mode()
def test_weights_times_values_are_what_the_model_attends_to(
    trunk: str, vocabulary: Vocabulary, layout: Layout, episode: TokenSequence
) -> None:
    model = tiny_model(vocabulary, context=128, **TRUNKS[trunk])
    past, observation = split(episode, layout)
    given: list[tuple[torch.Tensor, Any]] = []
    attended: list[torch.Tensor] = []
    for block in model.model.blocks:
        block.attention.register_forward_pre_hook(lambda _, args: given.append((args[0], args[2])))
        block.attention.out.register_forward_pre_hook(lambda _, args: attended.append(args[0]))
    hidden_of(model, [*past, observation])
    given, attended = given.copy(), attended.copy()
    weights = attention_weights(model, past, observation)
    L = model.config.trunk.length(concatenate([*past, observation]))
    assert weights.shape == (2, 2, L)
    for layer, block in enumerate(model.model.blocks):
        q, k, v = block.attention.queries_keys_values(*given[layer])
        everywhere = causal_weights(q, k)  # (1, H, L, L)
        summed = (everywhere @ v).transpose(1, 2).flatten(2)
        torch.testing.assert_close(summed, attended[layer], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(everywhere.sum(-1), torch.ones(1, 2, L))
        assert not everywhere.triu(1).any()
        torch.testing.assert_close(weights[layer], everywhere[0, :, -1], atol=1e-6, rtol=1e-5)
    assert weights.std() > 0.01  # no test of uniform weights


def test_reading_attention_leaves_no_hooks(vocabulary: Vocabulary, layout: Layout, episode: TokenSequence) -> None:
    model = tiny_model(vocabulary, context=128)
    attention_weights(model, *split(episode, layout))
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("changes", "positions"),
    [
        ({}, None),  # as many as tokens
        ({"latents": 2}, ["ooaa", "ooaa", "oo"]),
        ({"latents": 2, "decoded_actions": True}, ["oo", "oo", "oo"]),
        ({"decoded_actions": True}, None),
    ],
)
def test_positions_are_summed_by_timestep_and_actions_apart(
    changes: dict[str, Any],
    positions: list[str] | None,
    vocabulary: Vocabulary,
    layout: Layout,
    episode: TokenSequence,
) -> None:
    trunk = Trunk(vocabulary=vocabulary, **changes)
    sequence = concatenate([episode.timesteps(0, 2, vocabulary.patch), split(episode, layout)[1]])
    if positions is None:
        observed = [int(n) - 2 for n in np.diff(episode.timestep_starts)]
        actions = "" if changes else "aa"
        positions = ["o" * observed[0] + actions, "o" * observed[1] + actions, "o" * observed[3]]
    L = sum(map(len, positions))
    assert trunk.length(sequence) == L
    everything, on_actions = by_timestep(np.eye(L), sequence, trunk)  # a row for a position that has all
    owners = [t for t, kinds in enumerate(positions) for _ in kinds]
    assert everything.argmax(1).tolist() == owners
    assert everything.sum() == L
    expected = everything * np.array([kind == "a" for kind in "".join(positions)])[:, None]
    np.testing.assert_array_equal(on_actions, expected)


@pytest.mark.parametrize("trunk", ["flat", "4 latents, decoded"])
def test_a_view_shows_the_context_and_the_action_of_the_episode_that_is_played(toy: Callable, trunk: str) -> None:
    viewer, task = toy(trunk)
    env, actor = ToyEnv(OBSERVATION, ACTION, LENGTH), Actor(viewer.model)
    actor.reset(0, task.layout, seed=3)
    observation = env.reset(seed=3)[0]
    for step in range(8):
        shown = view_attention(viewer, task, step, seed=3)
        action = actor.act({0: observation})[0]
        values = [float(row["meaning"].split("= ")[1]) for row in shown.rows if row["loss_mask"]]
        assert values == action.tolist()
        assert shown.weights.shape == shown.action_weights.shape == (2, len(actor.sessions[0].window.timesteps))
        np.testing.assert_allclose(shown.weights.sum(1), 1.0, atol=1e-5)
        assert bool(shown.action_weights.any()) == (trunk == "flat" and step > 0)
        assert not shown.action_weights[:, -1].any()  # it is yet to come
        assert shown.image is not None
        np.testing.assert_array_equal(shown.image, observation["image"])
        observation = env.step(action)[0]
    forgotten = shown.weights.shape[1] < 8
    assert forgotten == (trunk == "flat")


def test_the_timesteps_of_a_prompt_come_first(toy: Callable, episode: TokenSequence, vocabulary: Vocabulary) -> None:
    prompt = episode.timesteps(0, 2, vocabulary.patch)
    shown = view_attention(*toy("1 latent"), 3, seed=3, prompt=prompt)
    assert shown.prompt_timesteps == 2
    assert shown.weights.shape == (2, 2 + 4)
    assert (shown.latents, shown.decoded_actions) == (1, False)


@pytest.mark.parametrize("step", [-1, LENGTH, 100])
def test_a_step_that_is_not_played_is_refused(toy: Callable, step: int) -> None:
    with pytest.raises(UserError, match=rf"step {step} of task 'toy/task', seed 3: allowed 0 to {LENGTH - 1}"):
        view_attention(*toy("1 latent"), step, seed=3)


def test_without_images_the_frame_is_shown_or_none(
    monkeypatch: pytest.MonkeyPatch, vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    class Filmed(ToyEnv):
        def __init__(self, render_mode: str | None = None) -> None:
            super().__init__(space, ACTION, LENGTH)

        def render(self) -> Any:
            return np.full((20, 30, 3), len(self.actions), np.uint8)

    spec = TaskSpec(id="toy/task", make=Filmed, expert=lambda e: e)
    layout, unknown = layout_of(Filmed(), vocabulary, text), Baseline(random=None, expert=None)
    task = CheckedTask(spec=spec, layout=layout, baseline=unknown, env=Filmed())
    actor = Actor(tiny_model(vocabulary))
    shown = view_attention(actor, task, 4)
    assert shown.image is not None
    np.testing.assert_array_equal(shown.image, np.full((20, 30, 3), 4, np.uint8))
    monkeypatch.setattr(Filmed, "render", lambda self: None)
    assert view_attention(actor, task, 4).image is None


def test_the_picture_has_a_cell_for_each_timestep_and_says_what_is_the_prompt(view: AttentionView) -> None:
    drawn = attention_picture(view)
    cells = re.findall(r'class="(s\d)" .*? fill-opacity="([\d.]+)"><title>(.*?)</title>', drawn)
    assert len(cells) == 2 * 2 * 6  # layers, bands, timesteps
    assert [colour for colour, _, _ in cells[:12]] == ["s3"] * 6 + ["s0"] * 6
    assert cells[0] == ("s3", f"{(0.075 / 0.48) ** 0.5:.3f}", "prompt timestep 0, observation: 7.5%")
    assert cells[-2] == ("s0", "1.000", "step 6, observation: 48.0%")
    assert cells[-1][2] == "step 6, action: 16.0%"
    assert "prompt: 3 timesteps of a demonstration" in drawn
    assert "episode: steps 4 to 6, which is now" in drawn
    assert 'aria-label="layer 1: prompt 20%, past 30%, now 50%"' in drawn
    assert "#" not in drawn  # its colours are the page's, in the dark too


def test_decoded_actions_have_no_band(view: AttentionView) -> None:
    decoded = replace(view, decoded_actions=True, action_weights=0 * view.weights, latents=4)
    drawn = attention_picture(decoded)
    assert drawn.count("<rect") == 2 * 6
    assert "Actions have no positions: the observation after them (4 latents) holds them." in drawn


def test_columns_of_long_contexts_stand_for_several_timesteps_of_one_part(view: AttentionView) -> None:
    weights = np.full((1, 1000), 1 / 1000)
    long = replace(
        view, decoded_actions=True, weights=weights, action_weights=0 * weights, prompt_timesteps=300, step=800
    )
    names = re.findall("<title>(.*?):", attention_picture(long))
    assert len(names) <= MAX_COLUMNS + 2
    assert names[0] == "prompt timestep 0 to 10"
    assert names[27:29] == ["prompt timestep 297 to 299", "step 101 to 111"]
    assert names[-1] == "step 800"


def test_the_report_names_task_seed_and_step_and_says_what_it_does_not_show(
    view: AttentionView, tmp_path: Path
) -> None:
    write_report(Report(title="t", results=Results(records=[], baselines={}), attention=[view]), tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert re.findall("<h2>(.*?)</h2>", page) == ["At a glance", "What it looks at"]
    assert "<h3>toy/&lt;task&gt;, seed 11, step 6</h3>" in page
    assert "not why the model acted so" in page
    assert "Step 6 as tokens" in page
    assert "<i>&#" not in page
    assert page.count('class="observed"') == 1


def test_a_prompt_that_slides_leaves_the_view_as_it_leaves_the_window(
    toy: Callable, episode: TokenSequence, vocabulary: Vocabulary
) -> None:
    prompt = episode.timesteps(0, 1, vocabulary.patch)
    actor, task = toy("flat")
    shown = [view_attention(actor, task, step, seed=3, prompt=prompt).prompt_timesteps for step in range(8)]
    assert shown == [1] * 8
    sliding = Actor(actor.model, prompt_slides=True)
    shown = [view_attention(sliding, task, step, seed=3, prompt=prompt).prompt_timesteps for step in range(8)]
    assert shown[0] == 1
    assert shown == sorted(shown, reverse=True)
    assert shown[-1] == 0
