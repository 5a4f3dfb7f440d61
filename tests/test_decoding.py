"""Picking an id from logits: greedy, sampled, from the likeliest only."""

import numpy as np
import pytest
import torch

from gatito.errors import UserError
from gatito.eval.decoding import Decoding


def generators(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(count)]


def test_temperature_0_takes_the_likeliest_and_draws_nothing() -> None:
    rngs = generators(2)
    assert Decoding(temperature=0.0).pick(torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), rngs).tolist() == [1, 0]
    assert rngs[0].random() == np.random.default_rng(0).random()


def test_samples_follow_the_softmax_of_the_logits() -> None:
    N = 4000
    logits = torch.tensor([0.0, 2.0, 4.0, -60.0]).repeat(N, 1)
    counts = np.bincount(Decoding(temperature=2.0).pick(logits, generators(N)), minlength=4) / N
    np.testing.assert_allclose(counts, torch.softmax(logits[0] / 2.0, -1).numpy(), atol=0.03)
    assert counts[3] == 0


def test_a_nucleus_is_the_fewest_likeliest_ids_that_reach_its_probability() -> None:
    N = 4000
    logits = torch.tensor([0.2, 0.1, 0.4, 0.3]).log().repeat(N, 1)
    for top_p, expected in ((0.01, [0, 0, 1, 0]), (0.69, [0, 0, 4 / 7, 3 / 7]), (0.71, [2 / 9, 0, 4 / 9, 3 / 9])):
        counts = np.bincount(Decoding(temperature=1.0, top_p=top_p).pick(logits, generators(N)), minlength=4) / N
        np.testing.assert_allclose(counts, expected, atol=0.03)
        np.testing.assert_array_equal(counts == 0, np.array(expected) == 0)


def test_a_nucleus_of_everything_changes_no_sample() -> None:
    logits = torch.randn(500, 1024, generator=torch.Generator().manual_seed(0))
    whole = Decoding(temperature=0.7).pick(logits, generators(500))
    # As acting has sampled since the first release: the first id whose cumulative probability reaches the draw.
    cumulative = torch.softmax(logits.double() / 0.7, -1).cumsum(-1).numpy()
    draws = np.array([rng.random() for rng in generators(500)])
    np.testing.assert_array_equal(whole, (cumulative < draws[:, None]).sum(-1))
    np.testing.assert_array_equal(whole, Decoding(temperature=0.7, top_p=1.0).pick(logits, generators(500)))


def test_each_row_draws_once_from_its_own_generator() -> None:
    logits = torch.zeros(3, 64)
    together = Decoding(top_p=0.9).pick(logits, generators(3))
    alone = [Decoding(top_p=0.9).pick(logits[:1], [rng])[0] for rng in generators(3)]
    assert together.tolist() == alone
    assert len(set(alone)) == 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers_are_an_error_and_not_the_first_id(temperature: float, value: float) -> None:
    with pytest.raises(UserError, match="the checkpoint computes no numbers"):
        Decoding(temperature=temperature).pick(torch.tensor([[0.0, 1.0], [0.0, value]]), generators(2))


def test_an_id_without_probability_is_not_sampled_where_rounding_leaves_a_rest() -> None:
    class Highest:
        def random(self) -> float:
            return float(np.nextafter(1.0, 0.0))

    logits = torch.tensor([[0.1, 0.2, 0.3, -2000.0, -3000.0]])
    assert Decoding(temperature=1.0).pick(logits, [Highest()]).item() in (0, 1, 2)  # type: ignore[list-item]


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf"), 1e-300])
def test_a_temperature_that_is_none_is_refused(temperature: float) -> None:
    with pytest.raises(UserError, match=rf"--temperature is {temperature}, allowed 0 \(the likeliest\), or 1e-06"):
        Decoding(temperature=temperature)


@pytest.mark.parametrize("top_p", [0.0, -0.5, 1.5, float("nan")])
def test_a_probability_outside_0_to_1_is_refused(top_p: float) -> None:
    with pytest.raises(UserError, match=rf"--top-p is {top_p}, allowed above 0 to 1"):
        Decoding(top_p=top_p)
