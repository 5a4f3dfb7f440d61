"""The report of a dataset is one page that needs nothing else, whatever the dataset holds."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SPACES
from gymnasium import spaces
from PIL import Image
from toy_data import write_minari

from gatito.data.build import open_layout
from gatito.data.episode import Episode
from gatito.data.histograms import bin_values, of_integers, of_numbers
from gatito.data.minari_episodes import open_minari
from gatito.data.player import MAX_BYTES, MAX_TIMESTEPS, Player
from gatito.data.report import MAX_AGENTS, MAX_PLAYERS, write_dataset_report
from gatito.data.survey import Survey, survey
from gatito.data.tasks import Reference
from gatito.tokenizers import Layout, TextTokenizer, Vocabulary

HOSTILE = "</script><script>alert(1)</script>"
OBSERVED = spaces.Dict(
    direction=spaces.Discrete(4),
    image=spaces.Box(0, 255, (16, 20, 3), np.uint8),
    mission=spaces.Text(64),
    speed=spaces.Box(-1.0, 1.0, (2,), np.float32),
)
ACTION = spaces.Box(-2.0, 2.0, (2,), np.float32)
Surveyed = Callable[..., Survey]


def episode(rewards: Sequence[float], mission: str = "go", observed: spaces.Space = OBSERVED, seed: int = 0) -> Any:
    """Sampled observations and actions, one action on its bounds, with these rewards."""
    observed.seed(seed), ACTION.seed(seed)
    observations = [observed.sample() for _ in range(len(rewards) + 1)]
    for observation in observations:
        if isinstance(observation, dict) and "mission" in observation:
            observation["mission"] = mission
    actions = [ACTION.sample() for _ in rewards]
    actions[0] = np.array([2.0, 0.0], np.float32)
    return observations, actions, rewards


@pytest.fixture
def surveyed(tmp_path: Path, text: TextTokenizer, vocabulary: Vocabulary) -> Surveyed:
    def run(
        episodes: Any, observed: spaces.Space = OBSERVED, action: spaces.Space = ACTION, **metadata: Any
    ) -> Survey:
        source = open_minari(write_minari(tmp_path, "toy", observed, action, episodes, **metadata))
        return survey(source, open_layout(source, vocabulary, text))

    return run


def page_of(seen: Survey, folder: Path) -> str:
    write_dataset_report(seen, folder / "report.html")
    assert not list(folder.glob("*.partial"))
    return (folder / "report.html").read_text()


def titles(page: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", page)


def counted(svg: str, unit: str) -> int:
    """The sum of all bars."""
    found = re.findall(rf"<title>[^<]*: ([\d,]+) {unit}</title>", svg)
    return sum(int(count.replace(",", "")) for count in found)


def data_of(page: str) -> list[dict[str, Any]]:
    """What the players are given."""
    return [json.loads(found) for found in re.findall(r'<script type="application/json">(.*?)</script>', page)]


def test_page_shows_everything_in_order(surveyed: Surveyed, tmp_path: Path) -> None:
    seen = surveyed([episode([1.0, 2.0], seed=k) for k in range(3)], gatito_task="toy/walk", gatito_license="GPL-3.0")
    page = page_of(seen, tmp_path)
    assert titles(page) == [
        "At a glance",
        "Findings",
        "Returns",
        "Episode lengths",
        "Observation fields",
        "Action fields",
        "Episodes",
        "From timesteps to tokens",
    ]
    assert "<h1>toy</h1>" in page
    for fact in ("toy/walk", "GPL-3.0", str(tmp_path / "toy"), "<b>3</b>episodes", "<b>6</b>timesteps"):
        assert fact in page
    assert "Nothing found." in page


def test_page_holds_every_finding_errors_first(surveyed: Surveyed, tmp_path: Path) -> None:
    outside = (episode([1.0])[0], [np.array([9.0, 0.0], np.float32)], [1.0])
    same = episode([1.0, 1.0])
    seen = surveyed([outside, same, same])
    page = page_of(seen, tmp_path)
    assert {f.level for f in seen.findings} == {"error", "warning"}
    places = [page.index(escape(f.text)) for f in seen.findings]
    assert places == sorted(places)
    assert "Nothing found." not in page


def test_nothing_from_a_file_becomes_html_or_script(surveyed: Surveyed, tmp_path: Path) -> None:
    observed = spaces.Dict({"<img src=x>": spaces.Discrete(2), "mission": spaces.Text(64), "n": spaces.Discrete(2)})
    hostile = {"dataset_id": f"id{HOSTILE}", "gatito_task": f"task{HOSTILE}", "gatito_license": f"license{HOSTILE}"}
    seen = surveyed([episode([1.0, 0.0], HOSTILE, observed)], observed, algorithm_name=f"agent{HOSTILE}", **hostile)
    page = page_of(seen, tmp_path)
    assert HOSTILE not in page
    assert "<img src=x>" not in page
    assert page.count("</script>") == 2  # of one player, and of the page
    for name in ("", "id", "task", "license", "agent"):
        assert escape(f"{name}{HOSTILE}") in page
    (data,) = data_of(page)
    assert ["mission", [HOSTILE]] in data["rows"]


def test_half_a_surrogate_pair_in_a_name_gives_a_page(surveyed: Surveyed, tmp_path: Path) -> None:
    assert "agent" in page_of(surveyed([episode([1.0])], algorithm_name="agent \ud800"), tmp_path)


def test_page_refers_to_nothing_outside_itself_and_runs_its_own_script_alone(
    surveyed: Surveyed, tmp_path: Path
) -> None:
    page = page_of(surveyed([episode([1.0, 2.0], seed=k) for k in range(2)]), tmp_path)
    references = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)|url\(([^)]*)""", page)
    assert len(references) == 3  # frames of two players, and the image as tokens
    assert all(source.startswith("data:image/png") for source, _ in references)
    assert "http:" not in page
    assert "https:" not in page
    (script,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        f"default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
        in page
    )


def test_counts_of_histograms_add_up(surveyed: Surveyed, tmp_path: Path) -> None:
    seen = surveyed([episode([1.0] * (k + 2), f"go to {k % 2}", seed=k) for k in range(5)])
    page = page_of(seen, tmp_path)
    timesteps = 2 + 3 + 4 + 5 + 6
    figures = re.findall(r"<figure><figcaption><b>(\w+)</b>(.*?)</figure>", page, re.DOTALL)
    counts = {name: counted(figure, "values") for name, figure in figures}
    sizes = {"direction": 1, "image": 16 * 20 * 3, "speed": 2, "action": 2}
    assert counts == {name: size * timesteps for name, size in sizes.items()} | {"mission": 0}
    of_texts = dict(figures)["mission"]
    assert re.findall(r"<span>(\d+)</span><span>(.*?)</span>", of_texts) == [("12", "go to 0"), ("8", "go to 1")]
    lengths = page.partition("<h2>Episode lengths")[2].partition("</section>")[0]
    returns = page.partition("<h2>Returns")[2].partition("</section>")[0]
    assert counted(lengths, "episodes") == counted(returns, "episodes") == 5


def test_axes_are_in_the_units_of_the_environment(text: TextTokenizer, vocabulary: Vocabulary) -> None:
    def values(observed: spaces.Space, action: spaces.Space, role: str) -> tuple[np.ndarray, str]:
        layout = Layout.from_spaces(observed, action, vocabulary=vocabulary, text=text)
        fields = layout.observations if role == "observation" else layout.actions
        return bin_values(fields[0], vocabulary)

    unequal = spaces.Box(np.array([-1.2, -0.07]), np.array([0.6, 0.07]), dtype=np.float64)
    scaled, note = values(unequal, ACTION, "action")
    assert scaled[[0, -1]] == pytest.approx([-2.0, 2.0], abs=0.003)
    assert note == ""
    companded, note = values(unequal, ACTION, "observation")
    assert companded[[0, -1]] == pytest.approx([-256.0, 256.0], rel=0.01)
    assert note == "logarithmic axis (mu-law)"
    in_bins, note = values(unequal, unequal, "action")
    assert in_bins[[0, -1]] == pytest.approx([-1.0, 1.0], abs=0.001)
    assert note == "each element between its own bounds, -1 to 1"


def test_constants_and_actions_at_their_bounds_are_said(surveyed: Surveyed, tmp_path: Path) -> None:
    observed = spaces.Box(-1.0, 1.0, (2,), np.float32)
    still = [[np.array([0.1 * t, 0.5], np.float32) for t in range(5)], episode([0.0] * 4)[1], [0.0] * 4]
    page = page_of(surveyed([still], observed), tmp_path)
    assert "constant: 1 of 2 elements: one value in all timesteps" in page
    assert "12.5% of the values lie on their bounds" in page


def test_references_are_marked_and_scores_are_given_by_agent(surveyed: Surveyed, tmp_path: Path) -> None:
    seen = surveyed([episode([float(k)], seed=k) for k in range(4)])
    seen.agents = ["expert", "expert", "noisy", "noisy"]
    assert "mean score" not in page_of(seen, tmp_path)
    seen.reference = Reference(random=-5.0, expert=5.0)
    page = page_of(seen, tmp_path)
    for words in (
        "random -5",
        "expert 5",
        "mean return 0.5<br>mean score 0.55",
        "mean return 2.5<br>mean score 0.75",
    ):
        assert words in page
    assert page.count('class="mark"') == 4


def test_best_median_and_worst_episode_are_shown(surveyed: Surveyed, tmp_path: Path) -> None:
    page = page_of(surveyed([episode([r], seed=k) for k, r in enumerate([2.0, 5.0, 1.0, 3.0, 4.0])]), tmp_path)
    found = re.findall(r"<h3>(\w+) of unknown</h3><figcaption>(episode \d, agent unknown, return \d)", page)
    assert found == [
        ("best", "episode 1, agent unknown, return 5"),
        ("median", "episode 3, agent unknown, return 3"),
        ("worst", "episode 2, agent unknown, return 1"),
    ]


def test_players_skip_episodes_that_cannot_be_trained_on(surveyed: Surveyed, tmp_path: Path) -> None:
    broken = (episode([1.0])[0], [np.array([np.nan, 0.0], np.float32)], [9.0])
    seen = surveyed([broken, episode([1.0], seed=1), broken, episode([2.0], seed=3)])
    captions = re.findall(r"<figcaption>(episode \d), agent unknown, (return \d)", page_of(seen, tmp_path))
    assert captions == [("episode 3", "return 2"), ("episode 1", "return 1")]


def test_page_of_broken_episodes_alone_shows_what_is_wrong(surveyed: Surveyed, tmp_path: Path) -> None:
    broken = (episode([1.0])[0], [np.array([np.nan, 0.0], np.float32)], [1.0])
    page = page_of(surveyed([broken]), tmp_path)
    assert "NaN or Inf" in page
    assert titles(page) == ["At a glance", "Findings", "Observation fields", "Action fields"]


def test_many_agents_give_six_players_and_share_a_histogram(surveyed: Surveyed, tmp_path: Path) -> None:
    count = MAX_AGENTS + 3
    seen = surveyed([episode([float(k)], seed=k) for k in range(count)])
    seen.agents = [f"agent {k}" for k in range(count)]
    page = page_of(seen, tmp_path)
    assert len(data_of(page)) == MAX_PLAYERS == 6
    assert "3 others" in page
    assert page.count('class="multiple"') == MAX_AGENTS + 1


@pytest.mark.slow
def test_noise_in_large_images_leaves_a_page_below_five_megabytes(
    text: TextTokenizer, vocabulary: Vocabulary
) -> None:
    observed = spaces.Box(0, 255, (180, 240, 3), np.uint8)
    layout = Layout.from_spaces(observed, ACTION, vocabulary=vocabulary, text=text)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (MAX_TIMESTEPS, *observed.shape), np.uint8)
    html = Player(episode=_episode(images, rng.normal(size=(MAX_TIMESTEPS, 2))), layout=layout, words="").html()
    assert MAX_PLAYERS * len(html) <= MAX_PLAYERS * MAX_BYTES < 4_000_000
    (data,) = data_of(html)
    assert 10 <= len(data["timesteps"]) < MAX_TIMESTEPS
    assert (data["timesteps"][0], data["timesteps"][-1]) == (0, MAX_TIMESTEPS - 1)
    assert f"{MAX_TIMESTEPS} timesteps, {len(data['timesteps'])} of them shown" in html


def test_frames_actions_and_rewards_are_those_of_the_timestep(text: TextTokenizer, vocabulary: Vocabulary) -> None:
    observed, T = spaces.Box(0, 255, (16, 20, 1), np.uint8), 2 * MAX_TIMESTEPS + 7
    layout = Layout.from_spaces(observed, ACTION, vocabulary=vocabulary, text=text)
    images = np.broadcast_to(np.arange(T)[:, None, None, None] % 251, (T, 16, 20, 1)).astype(np.uint8)
    html = Player(episode=_episode(images, np.arange(2 * T).reshape(T, 2)), layout=layout, words="").html()
    (data,), (uri,) = data_of(html), re.findall(r'src="data:image/png;base64,([^"]*)"', html)
    sheet, rows = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri)))), dict(data["rows"])
    assert len(data["timesteps"]) == MAX_TIMESTEPS
    for i, t in enumerate(data["timesteps"]):
        row, column = divmod(i, data["frames"]["columns"])
        assert (sheet[row * 16 : row * 16 + 16, column * 20 : column * 20 + 20] == t % 251).all()
        assert rows["action"][i] == f"{2 * t}, {2 * t + 1}"
        assert rows["reward"][i] == str(t)
        assert rows["return so far"][i].replace(",", "") == str(t * (t + 1) // 2)
        assert rows["imitated"][i] == ("no" if t % 2 else "yes")


def _episode(observations: Any, actions: Any) -> Episode:
    T = len(actions)
    targets = np.arange(T) % 2 == 0
    rewards = np.arange(T, dtype=np.float64)
    return Episode(
        task="t", id=0, agent="a", observations=observations, actions=actions, rewards=rewards, targets=targets
    )


def test_without_images_the_values_are_curves_with_a_cursor(surveyed: Surveyed, tmp_path: Path) -> None:
    observed = spaces.Dict(place=spaces.Box(-1.0, 1.0, (9,), np.float32), way=spaces.Discrete(3))
    observations, actions, rewards = episode([1.0, 0.0, 2.0], observed=observed)
    for observation, way in zip(observations, (1, 0, 2, 0), strict=True):
        observation["way"] = way
    page = page_of(surveyed([(observations, actions, rewards)], observed), tmp_path)
    player = page.partition('<figure class="player plain">')[2].partition("</figure>")[0]
    assert player.count('class="cursor"') == 4  # action, reward, place, way
    assert "place, the 6 of 9 elements that vary most" in player
    assert player.count("<polyline") == 2 + 1 + 6 + 1
    assert 'points="0.0000,0.5000 0.5000,0.5000 0.5000,1.0000 1.0000,1.0000 1.0000,0.0000"' in player
    assert "<canvas" not in page


@pytest.mark.parametrize("space", [space for _, space in SPACES], ids=[name for name, _ in SPACES])
def test_every_kind_of_space_gives_a_page(surveyed: Surveyed, tmp_path: Path, space: spaces.Space) -> None:
    seen = surveyed([episode([1.0, 0.0], observed=space, seed=k) for k in range(2)], space)
    page = page_of(seen, tmp_path)
    assert page.count("<figure><figcaption>") == len(seen.fields)
    assert len(data_of(page)) == 2
    assert "nan" not in page.partition("<main>")[2].partition("<script")[0]


def test_texts_alone_give_a_page_and_long_ones_are_cut(surveyed: Surveyed, tmp_path: Path) -> None:
    observed = spaces.Dict(mission=spaces.Text(400))
    page = page_of(surveyed([episode([1.0], "ab" * 150, observed)], observed), tmp_path)
    rows = dict(data_of(page)[0]["rows"])
    assert rows["mission"] == ["ab" * 100 + "…"]
    assert "ab" * 101 not in unescape(page)


def test_whole_numbers_and_equal_returns_have_sound_bars() -> None:
    lengths = of_integers(np.array([3, 3, 900]))
    assert lengths.counts.sum() == 3
    assert (lengths.spans[0], lengths.spans[-1]) == ("3 to 17", "888 to 900")
    assert lengths.ticks[-1] == (len(lengths.counts) - 1, "900")
    assert of_integers(np.array([5])).spans == ["5"]
    assert of_numbers(np.array([2.0, 2.0]), 1.5, 2.5).counts.sum() == 2
