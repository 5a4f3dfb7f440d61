"""What a pass over a dataset says, and what it finds wrong."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from toy_data import Shape, write_minari

from gatito.data import survey as module
from gatito.data.build import open_layout
from gatito.data.card import dataset_card
from gatito.data.minari_episodes import MinariWriter, open_minari
from gatito.data.survey import Survey, survey
from gatito.data.tasks import EVALUATION_SEEDS, Reference
from gatito.tokenizers import TextTokenizer, Vocabulary

UNIT = spaces.Box(-1, 1, (2,), np.float64)
EPISODES = [
    ([[0.1 * e, 0.5], [0.2, 0.5], [0.3, 0.5]], [[1.0, 0.0], [-1.0, 0.1 * e]], [float(e), 1.0]) for e in range(4)
]


@pytest.fixture
def surveyed(tmp_path: Path, text: TextTokenizer, vocabulary: Vocabulary) -> Any:
    def run(episodes: Sequence[Any] = EPISODES, space: spaces.Space = UNIT, **values: Any) -> Survey:
        path = write_minari(tmp_path, "toy/one-v0", space, UNIT, episodes, algorithm_name="someone")
        source = open_minari(path)
        return survey(source, open_layout(source, vocabulary, text), **values)

    return run


def kinds(seen: Survey, level: str) -> list[str]:
    return [finding.kind for finding in seen.findings if finding.level == level]


def test_a_survey_counts_what_is_there(surveyed: Any) -> None:
    seen = surveyed()
    assert seen.returns == [1.0, 2.0, 3.0, 4.0]
    assert seen.lengths == [2, 2, 2, 2]
    assert [(agent, returns.tolist()) for agent, returns in seen.by_agent()] == [("someone", [1.0, 2.0, 3.0, 4.0])]
    assert (seen.tokens, seen.longest) == (4 * 2 * 5, 5)
    observation, action = seen.fields
    assert observation.low.tolist() == [0.0, 0.5]
    assert observation.high.tolist() == pytest.approx([0.3, 0.5])
    assert observation.counts.sum() == observation.num_values == 16
    assert action.at_bounds == 8
    assert observation.constant == [1]


def test_an_element_that_never_changes_is_a_warning(surveyed: Any) -> None:
    seen = surveyed()
    assert kinds(seen, "warning") == ["constant"]
    assert "observation, elements 1: one value in all timesteps" in seen.findings[0].text
    assert seen.num_errors == 0


def test_bad_episodes_are_errors_and_the_others_are_still_read(surveyed: Any) -> None:
    nan = ([[np.nan, 0.5]] * 3, EPISODES[0][1], [0.0, 1.0])
    outside = (EPISODES[0][0], [[1.5, 0.0], [0.0, 0.0]], [0.0, 1.0])
    seen = surveyed([EPISODES[0], nan, EPISODES[1], outside])
    texts = [finding.text for finding in seen.findings if finding.level == "error"]
    assert len(texts) == seen.num_errors == 2
    assert "episode 1, observation, timestep 0: NaN or Inf in [nan" in texts[0]
    assert "episode 3, timestep 0: action[0] is 1.5, allowed [-1.0, 1.0]" in texts[1]
    assert seen.lengths == [2, 2]


def test_many_findings_of_one_kind_are_counted(surveyed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FINDINGS", 2)
    seen = surveyed([([[np.nan, 0]] * 3, EPISODES[0][1], [0.0, 1.0])] * 5)
    assert [finding.text for finding in seen.findings][-1] == "and 3 more of this kind"
    assert len(seen.findings) == 3


def test_the_same_episode_twice_is_a_warning(surveyed: Any) -> None:
    seen = surveyed([EPISODES[0], EPISODES[1], EPISODES[0]])
    assert "episode 2: the same tokens as episode 0; drop one" in seen.findings[0].text
    assert kinds(seen, "warning").count("duplicates") == 1


def test_a_timestep_longer_than_the_context_is_an_error(surveyed: Any) -> None:
    assert kinds(surveyed(context=4), "error") == ["context"]


def test_a_timestep_that_just_fits_the_context_is_none(surveyed: Any) -> None:
    assert surveyed(context=5).num_errors == 0


def test_actions_that_always_lie_on_their_bounds_are_a_warning(surveyed: Any) -> None:
    seen = surveyed([(o, [[1.0, -1.0], [-1.0, 1.0]], r) for o, _, r in EPISODES])
    assert "100% of the values of action lie on its bounds" in next(
        f.text for f in seen.findings if f.kind == "saturation"
    )


def test_observations_outside_their_bounds_are_a_warning(surveyed: Any) -> None:
    seen = surveyed([([[2.0, 0.1 * e], [0.0, 0.2], [0.0, 0.0]], a, r) for e, (_, a, r) in enumerate(EPISODES)])
    assert "25.0% of the observed values lie outside their bounds" in next(
        f.text for f in seen.findings if f.kind == "bounds"
    )


def test_text_outside_its_space_is_a_warning(surveyed: Any) -> None:
    actions = [[1.0, 0.0], [-1.0, 0.1], [0.5, 0.5]]
    episodes = [(["abc", text, "ab", "c"], actions, [1.0, 0.0, 1.0]) for text in ("b", "abcab", "a b")]
    seen = surveyed(episodes, spaces.Text(4, charset="abc"))
    found = [finding.text for finding in seen.findings if finding.kind == "bounds"]
    assert len(found) == 2
    assert "episode 1, observation, timestep 1: 'abcab' has 5 characters, allowed 1 to 4 of 'abc'" in found[0]
    assert "episode 2, observation, timestep 1: 'a b' has ' ', allowed" in found[1]
    assert seen.num_errors == 0


def test_expert_episodes_that_score_low_are_a_warning(
    tmp_path: Path, text: TextTokenizer, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "references", lambda: {"toy/one-v0": Reference(random=0.0, expert=100.0)})
    path = write_minari(tmp_path, "toy/one-v0", UNIT, UNIT, EPISODES, algorithm_name="expert")
    source = open_minari(path)
    seen = survey(source, open_layout(source, vocabulary, text))
    assert "agent 'expert' scores 0.03 of the expert's return on average" in next(
        f.text for f in seen.findings if f.kind == "returns"
    )


def write_seeds(folder: Path, seeds: Sequence[int], ends: Sequence[bool] = (False, True)) -> Path:
    folder.mkdir(parents=True)
    writer = MinariWriter(folder, "toy/seeds-v0", Shape(UNIT, UNIT), {})
    for k, seed in enumerate(seeds):
        observations = np.array([[k / 10, 0.0], [0.0, k / 10], [0.0, 0.0]])
        buffer = EpisodeBuffer(
            seed=seed, observations=observations, actions=np.zeros((2, 2)), rewards=[0.0, 1.0],
            terminations=list(ends), truncations=[False, False], infos={},
        )  # fmt: skip
        writer.write(buffer, agent="expert")
    writer.close()
    return folder


def test_seeds_of_evaluation_are_errors_and_seeds_played_twice_warnings(
    tmp_path: Path, text: TextTokenizer, vocabulary: Vocabulary
) -> None:
    source = open_minari(write_seeds(tmp_path / "a", [3, EVALUATION_SEEDS, 3]))
    seen = survey(source, open_layout(source, vocabulary, text))
    found = [(f.level, f.text) for f in seen.findings if f.kind == "seeds"]
    assert found[0][0] == "error"
    assert "episode 1: its seed 1073741824 is kept for evaluation" in found[0][1]
    assert found[1] == (
        "warning",
        f"{source.path}, episode 2: seed 3 of agent 'expert' was played in episode 0 already",
    )


def test_an_episode_that_goes_on_after_its_end_is_an_error(
    tmp_path: Path, text: TextTokenizer, vocabulary: Vocabulary
) -> None:
    source = open_minari(write_seeds(tmp_path / "a", [1], ends=(True, False)))
    seen = survey(source, open_layout(source, vocabulary, text))
    assert "episode 0, timestep 0: the episode ends here but goes on until 1; cut it in two" in seen.findings[0].text


def test_metadata_that_miscounts_is_an_error(surveyed: Any, text: TextTokenizer, vocabulary: Vocabulary) -> None:
    source = surveyed().source
    source.dataset.storage.update_metadata({"total_steps": 9})
    seen = survey(open_minari(source.path), open_layout(source, vocabulary, text))
    assert "metadata.json states 9 timesteps, its episodes 8" in seen.findings[0].text
    assert kinds(seen, "error") == ["schema"]


def test_an_episode_that_states_other_timesteps_than_it_has_is_an_error(
    surveyed: Any, text: TextTokenizer, vocabulary: Vocabulary
) -> None:
    source = surveyed().source
    file = source.path / "data/2/metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"total_steps": 3}))
    seen = survey(source, open_layout(source, vocabulary, text))
    assert kinds(seen, "error") == ["values"]
    assert "episode 2: its metadata states 3 timesteps, its file has 2; remove" in seen.findings[0].text


@pytest.mark.parametrize("left", [1, 3])
def test_episodes_beyond_those_that_metadata_counts_are_an_error(
    surveyed: Any, text: TextTokenizer, vocabulary: Vocabulary, left: int
) -> None:
    source = surveyed().source
    source.dataset.storage.update_metadata({"total_episodes": left, "total_steps": 2 * left})
    seen = survey(open_minari(source.path), open_layout(source, vocabulary, text))
    names = ", ".join(map(str, range(left, 4)))
    assert f"metadata.json states {left} episodes, data/ has {names} too" in seen.findings[0].text
    assert kinds(seen, "error") == ["schema"]


def test_fewer_episodes_than_metadata_counts_are_an_error(
    surveyed: Any, text: TextTokenizer, vocabulary: Vocabulary
) -> None:
    source = surveyed().source
    source.dataset.storage.update_metadata({"total_episodes": 5})
    seen = survey(open_minari(source.path), open_layout(source, vocabulary, text))
    assert kinds(seen, "error") == ["values"]
    assert "data/4/part-0.arrow is missing" in seen.findings[0].text


@pytest.mark.parametrize(
    ("agents", "said"),
    [
        (["noisy"], "1 the scripted expert. Recorded actions are those of the expert, also where a random one was"),
        (["random"], "1 the scripted expert. Recorded actions are the executed ones."),
        (["expert"], "1 the scripted expert. Recorded actions are the executed ones."),
    ],
)
def test_the_card_says_which_actions_were_recorded(surveyed: Any, agents: list[str], said: str) -> None:
    seen = surveyed()
    seen.source = dataclasses.replace(seen.source, executed=False)
    seen.agents, seen.reference = agents * 4, Reference(random=0.0, expert=1.0)
    assert said in " ".join(dataset_card(seen).split())


def test_the_card_of_a_policy_without_references_speaks_of_no_expert(surveyed: Any) -> None:
    seen = surveyed()
    seen.source = dataclasses.replace(seen.source, executed=False)
    assert "expert" not in dataset_card(seen)
    assert "Recorded actions are the executed ones." in dataset_card(seen)


def test_the_card_is_valid_front_matter_and_names_licence_fields_and_agents(
    surveyed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import DatasetCard

    seen = surveyed()
    seen.source = dataclasses.replace(seen.source, license="GPL-2.0-only")
    card = DatasetCard(dataset_card(seen))
    assert card.data.license == "gpl-2.0"
    assert card.data.size_categories == ["n<1K"]
    assert "| someone | 4 | 2.5 | 1 | 4 |" in card.text
    assert "| observation | (all) | continuous | (2,) | 0 to 0.5 |" in card.text
    assert "- warning: " in card.text
