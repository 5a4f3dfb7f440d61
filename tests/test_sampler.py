"""The mixture sampler: a pure stream, exact rows, and prompts as the paper has them."""

import hashlib
import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from gatito.data import sampler as sampling
from gatito.data.sampler import (
    Sampler,
    goal_timesteps,
    longest_timestep,
    prompt_budget,
    prompt_timesteps,
    timestep_chunks,
)
from gatito.data.store import Store, StoreWriter, open_dataset
from gatito.errors import UserError
from gatito.tokenizers import Layout, TextTokenizer, TokenSequence, Vocabulary, pair_tokens, text_tokens
from gatito.tokenizers.trunk import Trunk

CONTEXT = 40
STEP = 4
"""Tokens of a timestep of the walk: episode, timestep, separator, action."""
LENGTHS = [30, 41, 52, 28, 60, 35, 33, 47]
"""Timesteps of the episodes of the walk; episodes 0, 2, 4, 6 are of agent a, the others of agent b."""
DISCRETE = 300 + 1024
"""First discrete id: an observation's ids tell its episode and its timestep."""
WEIGHTS = {"walk": 5.0, "words": 2.0, "pictures": 3.0}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary, text: TextTokenizer) -> Store:
    """A walk (control), words (documents) and pictures (pairs)."""
    folder = tmp_path_factory.mktemp("store")
    space = spaces.MultiDiscrete([1024, 1024])
    layout = Layout.from_spaces(space, spaces.Discrete(4), vocabulary=vocabulary, text=text)
    walk = []
    for e, T in enumerate(LENGTHS):
        observations = np.stack([np.full(T, e), np.arange(T)], axis=1)
        walk.append((layout.episode_tokens(observations, np.arange(T) % 4), "ab"[e % 2]))
    words = [(text_tokens("the value of the class statement " * n, text), "text") for n in (1, 5, 3)]
    pictures = [
        (pair_tokens(np.full((16, 16, 1), 10 * k, np.uint8), "a" * (k % 3 + 1), vocabulary, text), "captions")
        for k in range(12)
    ]
    return store_of(folder, vocabulary, text, {"walk": walk, "words": words, "pictures": pictures})


def store_of(
    folder: Path,
    vocabulary: Vocabulary,
    text: TextTokenizer,
    parts: dict[str, list[tuple[TokenSequence, str]]],
) -> Store:
    kinds = {"walk": "control", "words": "text", "pictures": "pairs"}
    datasets = []
    for name, sequences in parts.items():
        writer = StoreWriter(folder / name, vocabulary)
        for sequence, agent in sequences:
            writer.write(sequence, agent)
        writer.close({"name": name, "kind": kinds[name], "task": name})
        datasets.append(open_dataset(folder / name, vocabulary, weight=WEIGHTS[name]))
    return Store(folder=folder, vocabulary=vocabulary, text=text, datasets=tuple(datasets))


@pytest.fixture(scope="module")
def walk(store: Store) -> Store:
    """Only the walk."""
    return Store(folder=store.folder, vocabulary=store.vocabulary, text=store.text, datasets=store.datasets[:1])


def places(sequence: TokenSequence) -> list[tuple[int, int]]:
    """(episode, timestep) of each timestep of the walk, from its ids."""
    starts = sequence.timestep_starts[:-1]
    return [
        (int(sequence.ids[s]) - DISCRETE, int(sequence.ids[s + 1]) - DISCRETE)
        for s in starts
        if s + 1 < len(sequence)
    ]


def prompt_and_window(sequence: TokenSequence) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Split at the timestep where another episode begins."""
    steps = places(sequence)
    cut = next((i for i, (episode, _) in enumerate(steps) if episode != steps[-1][0]), len(steps))
    if cut == len(steps):
        return [], steps
    cut = max(i for i, (episode, _) in enumerate(steps) if episode != steps[-1][0]) + 1
    return steps[:cut], steps[cut:]


def same_row(a: Sequence[TokenSequence], b: Sequence[TokenSequence]) -> bool:
    return [s.ids.tolist() for s in a] == [s.ids.tolist() for s in b]


def same_batch(a: Any, b: Any) -> bool:
    return all(torch.equal(value, b.tensors()[name]) for name, value in a.tensors().items())


# A pure stream


def test_a_row_depends_on_seed_and_index_only(store: Store) -> None:
    one, two = (
        Sampler(store=store, trunk=Trunk(vocabulary=store.vocabulary), context=CONTEXT, seed=3) for _ in range(2)
    )
    backwards = {i: two.row(i) for i in reversed(range(60))}
    for i in range(60):
        assert same_row(one.row(i), backwards[i])
        assert same_row(one.row(i), one.row(i))


def test_a_batch_is_its_rows_wherever_it_begins(store: Store) -> None:
    sampler = Sampler(store=store, trunk=Trunk(vocabulary=store.vocabulary), context=CONTEXT, seed=3)
    whole = sampler.batch(10, 6)
    assert same_batch(
        whole, Sampler(store=store, trunk=Trunk(vocabulary=store.vocabulary), context=CONTEXT, seed=3).batch(10, 6)
    )
    parts = [sampler.batch(10, 2), sampler.batch(12, 4)]
    for name in ("input_ids", "loss_mask", "local_positions", "segments", "positions", "patch_positions"):
        joined = torch.cat([part.tensors()[name] for part in parts])
        assert torch.equal(joined, whole.tensors()[name]), name
    pixels = torch.cat([part.patches[part.patch_indices] for part in parts])
    assert torch.equal(pixels, whole.patches[whole.patch_indices])
    assert len(pixels) > 3


def test_another_seed_is_another_stream(store: Store) -> None:
    a, b = (
        Sampler(store=store, trunk=Trunk(vocabulary=store.vocabulary), context=CONTEXT, seed=seed) for seed in (3, 4)
    )
    assert sum(same_row(a.row(i), b.row(i)) for i in range(50)) <= 1


def test_rows_of_one_seed_differ(store: Store) -> None:
    sampler = Sampler(store=store, trunk=Trunk(vocabulary=store.vocabulary), context=CONTEXT, seed=3)
    rows = [str([s.ids.tolist() for s in sampler.row(i)]) for i in range(100)]
    assert len(set(rows)) == 100


# Rows


def test_rows_are_exactly_the_context_without_padding(store: Store) -> None:
    sampler = Sampler(store=store, trunk=Trunk(vocabulary=store.vocabulary), context=CONTEXT, seed=0)
    rows = [sampler.row(i) for i in range(300)]
    assert {sum(len(s) for s in row) for row in rows} == {CONTEXT}
    assert max(len(row) for row in rows) > 1  # packing occurred
    batch = sampler.batch(0, 20)
    assert batch.input_ids.shape == (20, CONTEXT)
    assert (batch.segments > 0).all()


def test_a_row_is_of_one_dataset(store: Store) -> None:
    sampler = Sampler(store=store, trunk=Trunk(vocabulary=store.vocabulary), context=CONTEXT, seed=0)
    seen = Counter()
    for i in range(200):
        name = sampler.dataset(i).name
        seen[name] += 1
        for sequence in sampler.row(i):
            has_patch = bool((sequence.ids == store.vocabulary.patch).any())
            assert has_patch == (name == "pictures")
            assert bool((sequence.ids >= DISCRETE).any()) == (name != "words")
    assert set(seen) == set(WEIGHTS)


def test_windows_start_on_a_timestep_and_follow_their_episode(walk: Store) -> None:
    sampler = Sampler(store=walk, trunk=Trunk(vocabulary=walk.vocabulary), context=CONTEXT, seed=1, prompt_share=0.0)
    cut_ends = 0
    for i in range(200):
        for sequence in sampler.row(i):
            steps = places(sequence)
            episode, first = steps[0]
            assert steps == [(episode, first + k) for k in range(len(steps))]
            cut_ends += len(sequence) % STEP != 0
    assert cut_ends == 0  # 40 is a multiple of 4: whole timesteps throughout


def test_a_window_ends_at_its_episode_s_end_or_with_the_row(walk: Store) -> None:
    sampler = Sampler(
        store=walk, trunk=Trunk(vocabulary=walk.vocabulary), context=CONTEXT - 1, seed=1, prompt_share=0.0
    )
    at_the_end = 0
    for i in range(200):
        row = sampler.row(i)
        for sequence in row[:-1]:
            episode, last = places(sequence)[-1]
            assert last == LENGTHS[episode] - 1
            at_the_end += 1
    assert at_the_end > 20


def test_every_timestep_is_as_likely_a_start(walk: Store) -> None:
    sampler = Sampler(store=walk, trunk=Trunk(vocabulary=walk.vocabulary), context=STEP, seed=0, prompt_share=0.0)
    starts = Counter(places(sampler.row(i)[0])[0] for i in range(6000))
    total = sum(LENGTHS)
    assert len(starts) > 0.99 * total
    for e, T in enumerate(LENGTHS):
        share = sum(n for (episode, _), n in starts.items() if episode == e) / 6000
        assert share == pytest.approx(T / total, abs=0.02)


# Weights


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_every_stretch_of_200_rows_has_the_weights(store: Store, seed: int) -> None:
    sampler = Sampler(store=store, trunk=Trunk(vocabulary=store.vocabulary), context=CONTEXT, seed=seed)
    names = [sampler.dataset(i).name for i in range(20_000)]
    for name, share in {"walk": 0.5, "words": 0.2, "pictures": 0.3}.items():
        counts = np.convolve([n == name for n in names], np.ones(200), "valid")
        assert abs(counts - 200 * share).max() <= 2  # a random order would stray by 20
        assert np.mean([n == name for n in names]) == pytest.approx(share, abs=0.001)


# Prompts


@pytest.fixture(scope="module")
def prompts(walk: Store) -> list[tuple[list[tuple[int, int]], list[tuple[int, int]]]]:
    """(prompt, window) of the first sequence of 4 000 rows of 42 tokens: half of them hold 5 timesteps, not 5.25."""
    sampler = Sampler(store=walk, trunk=Trunk(vocabulary=walk.vocabulary), context=42, seed=5)
    return [prompt_and_window(sampler.row(i)[0]) for i in range(4000)]


def test_a_quarter_of_the_sequences_has_a_prompt(prompts: Any) -> None:
    # Three standard errors; a prompt that happens to be of the same episode is no prompt, and does not occur.
    assert np.mean([bool(prompt) for prompt, _ in prompts]) == pytest.approx(0.25, abs=0.021)


def test_a_prompt_is_whole_timesteps_of_at_most_half_the_room(prompts: Any) -> None:
    sizes = Counter(len(prompt) * STEP for prompt, _ in prompts if prompt)
    assert sum(sizes.values()) > 800
    assert max(sizes) == 20  # whole timesteps of at most 21 tokens
    for prompt, window in prompts:
        if prompt:
            episode, first = prompt[0]
            assert prompt == [(episode, first + k) for k in range(len(prompt))]
            assert len(window) >= 1


def test_a_prompt_is_another_episode_of_the_same_source_agent(prompts: Any) -> None:
    pairs = Counter((prompt[0][0], window[0][0]) for prompt, window in prompts if prompt)
    assert len(pairs) == 24  # 2 agents with 4 episodes each: 2 * 4 * 3 ordered pairs, all of them occurred
    for prompted, episode in pairs:
        assert prompted != episode
        assert prompted % 2 == episode % 2


def test_half_of_the_prompts_end_at_the_end_of_their_episode(prompts: Any) -> None:
    ends = [prompt[-1] for prompt, _ in prompts if prompt]
    at_the_end = np.mean([last == LENGTHS[episode] - 1 for episode, last in ends])
    # A uniform start is among the last 5 timesteps of an episode of about 41 once in 8: 1/2 + 1/2 * 1/8 = 0.56.
    uniform = np.mean([5 / T for T in LENGTHS])
    assert at_the_end == pytest.approx(0.5 + 0.5 * uniform, abs=0.05)


def test_the_other_half_starts_anywhere(prompts: Any) -> None:
    starts = [prompt[0] for prompt, _ in prompts if prompt and prompt[-1][1] != LENGTHS[prompt[-1][0]] - 1]
    relative = np.array([first / (LENGTHS[episode] - 5) for episode, first in starts])
    assert len(starts) > 300
    assert np.histogram(relative, 4, (0, 1))[0].min() > len(starts) / 4 * 0.75


def test_prompts_are_drawn_afresh_for_the_same_window(walk: Store) -> None:
    sampler = Sampler(store=walk, trunk=Trunk(vocabulary=walk.vocabulary), context=CONTEXT, seed=5)
    seen: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for i in range(6000):
        prompt, window = prompt_and_window(sampler.row(i)[0])
        if prompt:
            seen.setdefault(window[0], set()).add(prompt[0])
    again = [prompts for prompts in seen.values() if len(prompts) > 1]
    assert len(again) > 100


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (1.0, 1.0)])
def test_the_share_of_prompts_is_as_asked(walk: Store, share: float, expected: float) -> None:
    sampler = Sampler(
        store=walk, trunk=Trunk(vocabulary=walk.vocabulary), context=CONTEXT, seed=5, prompt_share=share
    )
    firsts = [prompt_and_window(sampler.row(i)[0]) for i in range(100)]
    assert np.mean([bool(prompt) for prompt, _ in firsts]) == expected


def test_an_agent_with_a_single_episode_has_no_prompt(
    tmp_path: Path, store: Store, vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    episode = store.datasets[0].episode
    lonely = store_of(tmp_path, vocabulary, text, {"walk": [(episode(0), "a"), (episode(1), "b")]})
    sampler = Sampler(
        store=lonely, trunk=Trunk(vocabulary=lonely.vocabulary), context=CONTEXT, seed=0, prompt_share=1.0
    )
    for i in range(50):
        for sequence in sampler.row(i):
            assert len({e for e, _ in places(sequence)}) == 1


def test_documents_and_pairs_have_no_prompt(store: Store) -> None:
    sampler = Sampler(
        store=store, trunk=Trunk(vocabulary=store.vocabulary), context=CONTEXT, seed=0, prompt_share=1.0
    )
    words = [i for i in range(100) if sampler.dataset(i).name == "words"]
    assert len(words) > 10
    document = store.datasets[1].episode
    texts = [document(e).ids.tolist() for e in range(3)]
    for i in words:
        for sequence in sampler.row(i):
            ids = sequence.ids.tolist()
            assert any(ids == whole[k : k + len(ids)] for whole in texts for k in range(len(whole)))


def test_the_budget_and_the_runs_of_whole_timesteps() -> None:
    starts = np.array([0, 3, 10, 12, 20])
    assert prompt_budget(1024) == 512
    assert [prompt_timesteps(starts, 0, n) for n in (2, 3, 9, 10, 100)] == [0, 1, 1, 2, 4]
    assert [prompt_timesteps(starts, 2, n) for n in (1, 2, 10)] == [2, 3, 4]
    assert [goal_timesteps(starts, n) for n in (7, 8, 9, 10, 17, 20, 100)] == [4, 3, 3, 2, 1, 0, 0]


def test_a_prompt_of_two_episodes_is_the_other_one(
    tmp_path: Path, store: Store, vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    episode = store.datasets[0].episode
    two = store_of(tmp_path, vocabulary, text, {"walk": [(episode(0), "a"), (episode(1), "a")]})
    sampler = Sampler(store=two, trunk=Trunk(vocabulary=two.vocabulary), context=CONTEXT, seed=0, prompt_share=1.0)
    pairs = {tuple(dict.fromkeys(e for e, _ in places(sampler.row(i)[0]))) for i in range(50)}
    assert pairs == {(0, 1), (1, 0)}


# Pairs


def test_a_vision_language_sequence_is_five_pairs(store: Store) -> None:
    pictures = Store(folder=store.folder, vocabulary=store.vocabulary, text=store.text, datasets=store.datasets[2:])
    sampler = Sampler(store=pictures, trunk=Trunk(vocabulary=pictures.vocabulary), context=200, seed=0)
    whole = 0
    for i in range(20):
        *sequences, last = sampler.row(i)
        assert last.num_timesteps <= 5
        for sequence in sequences:
            whole += 1
            assert sequence.num_timesteps == 5
            assert len(sequence.patches) == 5
            starts = sequence.timestep_starts[:-1]
            assert (sequence.ids[starts] == store.vocabulary.patch).all()
            assert (sequence.ids[sequence.timestep_starts[1:] - 1] == 2).all()
    assert whole > 50


def test_pairs_are_cropped_where_the_row_ends(store: Store) -> None:
    pictures = Store(folder=store.folder, vocabulary=store.vocabulary, text=store.text, datasets=store.datasets[2:])
    sampler = Sampler(store=pictures, trunk=Trunk(vocabulary=pictures.vocabulary), context=9, seed=0)
    for i in range(50):
        row = sampler.row(i)
        assert sum(len(s) for s in row) == 9
        assert all(len(s.patches) == (s.ids == store.vocabulary.patch).sum() for s in row)


# What is refused


def test_a_timestep_longer_than_the_context_is_refused_naming_the_dataset(store: Store) -> None:
    message = r"dataset 'walk' has a timestep of 4 positions, the context is 3; raise --train\.context"
    with pytest.raises(UserError, match=message):
        Sampler(store=store, trunk=Trunk(vocabulary=store.vocabulary), context=3, seed=0)
    Sampler(
        store=store,
        trunk=Trunk(vocabulary=store.vocabulary),
        context=max(longest_timestep(d, Trunk(vocabulary=store.vocabulary)) for d in store),
        seed=0,
    )


# Positions of a trunk that has latents


@pytest.mark.parametrize("latents", [1, 4])
@pytest.mark.parametrize("decoded", [False, True])
def test_rows_are_filled_with_positions_as_far_as_a_timestep_fits(store: Store, latents: int, decoded: bool) -> None:
    trunk = Trunk(vocabulary=store.vocabulary, latents=latents, decoded_actions=decoded)
    sampler = Sampler(store=store, trunk=trunk, context=CONTEXT, seed=0)
    for i in range(200):
        row = sampler.row(i)
        filled = sum(trunk.length(s) for s in row)
        assert CONTEXT - latents <= filled <= CONTEXT
        if sampler.dataset(i).kind != "control":
            assert filled == CONTEXT
    assert sampler.batch(0, 20).input_ids.shape == (20, CONTEXT)


def test_prompts_and_windows_of_resampled_rows_are_runs_of_whole_timesteps(walk: Store) -> None:
    trunk = Trunk(vocabulary=walk.vocabulary, latents=2, decoded_actions=True)
    sampler = Sampler(store=walk, trunk=trunk, context=CONTEXT, seed=5, prompt_share=1.0)
    longest = 0
    for i in range(300):
        prompt, window = prompt_and_window(sampler.row(i)[0])
        for steps in (prompt, window):
            assert steps == [(steps[0][0], steps[0][1] + k) for k in range(len(steps))]
        longest = max(longest, len(prompt))
        assert len(window) >= 1
    assert longest == 10  # of 2 positions each: half of 40


def test_a_resampled_context_reaches_further_back(walk: Store) -> None:
    flat = Sampler(store=walk, trunk=Trunk(vocabulary=walk.vocabulary), context=CONTEXT, seed=1, prompt_share=0.0)
    trunk = Trunk(vocabulary=walk.vocabulary, latents=1, decoded_actions=True)
    resampled = Sampler(store=walk, trunk=trunk, context=CONTEXT, seed=1, prompt_share=0.0)
    longest = [max(len(places(s)) for i in range(200) for s in sampler.row(i)) for sampler in (flat, resampled)]
    assert longest == [CONTEXT // STEP, CONTEXT]


def test_the_longest_timestep_is_counted_in_positions(store: Store) -> None:
    walk, words, pictures = store.datasets
    flat = Trunk(vocabulary=store.vocabulary)
    trunk = Trunk(vocabulary=store.vocabulary, latents=1, resample_images=True)
    assert [longest_timestep(walk, t) for t in (flat, trunk)] == [STEP, 2]
    assert [longest_timestep(words, t) for t in (flat, trunk)] == [1, 1]
    patches = longest_timestep(pictures, flat)
    assert longest_timestep(pictures, trunk) == patches  # one patch each
    with pytest.raises(UserError, match="'walk' has a timestep of 5 positions, the context is 4"):
        Sampler(store=store, trunk=Trunk(vocabulary=store.vocabulary, latents=4), context=4, seed=0)


def test_chunks_are_all_timesteps_in_order_and_bounded_in_tokens(store: Store, monkeypatch: Any) -> None:
    pictures = store.datasets[2]
    lengths = np.diff(pictures.timestep_tokens)
    assert len(set(lengths.tolist())) > 1
    monkeypatch.setattr(sampling, "CHUNK", 9)
    runs = list(timestep_chunks(pictures))
    assert [t for first, last in runs for t in range(first, last)] == list(range(pictures.num_timesteps))
    assert max(last - first for first, last in runs) > 1
    assert max(lengths[first:last].sum() for first, last in runs) <= 9
    monkeypatch.setattr(sampling, "CHUNK", 1)  # a timestep longer than a chunk is one of its own
    assert list(timestep_chunks(pictures)) == [(t, t + 1) for t in range(pictures.num_timesteps)]


def test_a_sampler_is_sent_to_workers_without_its_data(store: Store) -> None:
    sampler = Sampler(store=store, trunk=Trunk(vocabulary=store.vocabulary, latents=1), context=CONTEXT, seed=3)
    before = sampler.batch(0, 20)
    assert "ids" in store.datasets[0].__dict__  # mapped
    again = pickle.loads(pickle.dumps(sampler))
    assert "ids" not in again.store.datasets[0].__dict__
    assert same_batch(again.batch(0, 20), before)


def test_flat_rows_are_those_of_before_there_were_latents(walk: Store) -> None:
    """The hash is of the code before the resampler."""
    sampler = Sampler(store=walk, trunk=Trunk(vocabulary=walk.vocabulary), context=42, seed=3)
    digest = hashlib.sha256()
    for i in range(200):
        for sequence in sampler.row(i):
            digest.update(sequence.ids.astype("<i4").tobytes() + b"|")
    assert digest.hexdigest() == "6f5e928cc5f0a187a630026437f9c412831e024fcb9cb9af4c60b08e0954d01c"
