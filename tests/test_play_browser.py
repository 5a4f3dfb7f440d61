"""The page in headless Chromium: `pytest -m browser`."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from played import CAR, CARTPOLE, GRID, checkpoint_of, playing
from playwright.sync_api import Browser, Page, expect, sync_playwright

from gatito.data.collection import CollectConfig, played_seeds
from gatito.data.minari_arrow import EncodedEpisode
from gatito.data.minari_episodes import open_minari
from gatito.data.tasks import get_task
from gatito.play.server import PlayServer
from gatito.tokenizers import TextTokenizer, Vocabulary

pytestmark = pytest.mark.browser
SWITCHES = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PHONE, DESKTOP = (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def served(
    vocabulary: Vocabulary, text: TextTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[PlayServer, str]]:
    """It starts before Playwright does, which brings a loop of its own."""
    with playing(*checkpoint_of(vocabulary, text), record=str(tmp_path_factory.mktemp("recorded"))) as these:
        yield these


@pytest.fixture(scope="module")
def browser(served: Any) -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert found, "these tests drive an installed Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=SWITCHES)
        yield opened
        opened.close()


@pytest.fixture(params=[DESKTOP])
def opened(served: Any, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page; whatever its console complains of fails the test."""
    width, height = request.param
    own = browser.new_page(viewport={"width": width, "height": height})
    complaints: list[str] = []
    own.on("console", lambda message: complaints.append(message.text))
    own.on("pageerror", lambda error: complaints.append(str(error)))
    own.goto(served[1])
    expect(frames(own)).to_have_count(1)
    yield own
    own.close()
    assert complaints == []


def frames(own: Page) -> Any:
    return own.locator('#panes img[src^="data:image/png"]')


def choose(own: Page, task: str) -> None:
    own.select_option("#task", task)
    expect(own.locator("#task-name")).to_contain_text(task)


def test_the_page_opens_with_an_agent_that_acts(opened: Page) -> None:
    expect(opened.locator("#task-name")).to_contain_text(CARTPOLE)
    expect(opened.locator("figcaption")).to_contain_text("over: return", timeout=20_000)
    expect(opened.locator("#task-name")).to_contain_text("seed 1", timeout=20_000)  # it goes on with the next seed


def test_a_person_plays_with_the_keyboard_alone_prompts_with_it_and_saves_it(served: Any, opened: Page) -> None:
    opened.uncheck("#endless")
    opened.focus("#filter")
    opened.keyboard.type("cartp")
    opened.keyboard.press("Enter")
    expect(opened.locator("#task-name")).to_contain_text(CARTPOLE)
    opened.keyboard.press("Tab")
    opened.focus("#control")
    opened.keyboard.press("c")
    expect(opened.locator("figcaption b")).to_have_text("you act")
    for step, key in enumerate(["ArrowLeft", "ArrowRight", "ArrowRight"], start=1):
        opened.keyboard.press(key)
        expect(opened.locator("figcaption span").first).to_contain_text(f"step {step},")
    expect(opened.locator("figcaption span").first).to_contain_text("action push right")
    opened.focus("#finish")
    opened.keyboard.press("Enter")
    expect(opened.locator("figcaption b")).to_have_text("prompted with 3 timesteps")
    expect(opened.locator("#prompt option:checked")).to_contain_text("you, seed 0")
    opened.focus("#name")
    opened.keyboard.press("Enter")
    expect(opened.locator("#saved")).to_contain_text("lessons-v0")
    folder = Path(served[0].config.record) / CARTPOLE / "lessons-v0"
    assert open_minari(folder).episode(0).actions.tolist() == [0, 1, 1]
    opened.keyboard.press("Enter")
    expect(opened.locator("#save")).to_be_hidden()


def test_keys_pause_step_and_begin_again(opened: Page) -> None:
    choose(opened, CAR)
    opened.locator("h1").click()
    opened.keyboard.press("Space")
    expect(opened.locator("#go")).to_contain_text("play")
    opened.keyboard.press("r")
    expect(opened.locator("#go")).to_contain_text("pause")
    opened.keyboard.press("Space")
    opened.keyboard.press("n")
    expect(opened.locator("#task-name")).to_contain_text("seed 1")


def test_sliders_act_where_actions_are_numbers(opened: Page) -> None:
    choose(opened, CAR)
    opened.click("#control")
    opened.locator("#pad input[type=range]").fill("0.5")
    opened.get_by_role("button", name="do it").click()
    expect(opened.locator("figcaption span").first).to_contain_text("step 1, return")
    expect(opened.locator("figcaption span").first).to_contain_text("action 0.5")
    opened.click("#control")
    expect(opened.locator("#pad")).to_be_hidden()


def test_prompted_and_unprompted_stand_side_by_side(opened: Page) -> None:
    choose(opened, GRID)
    opened.click("#expert")
    expect(opened.locator("figcaption b")).to_contain_text("prompted with")
    opened.check("#beside")
    expect(frames(opened)).to_have_count(2)
    first, second = opened.locator("figcaption b").all_text_contents()
    assert first == "no prompt"
    assert second.startswith("prompted with")


def test_an_instruction_a_question_and_attention(opened: Page) -> None:
    choose(opened, GRID)
    opened.fill("#instruction", "go to the green box")
    opened.click("text=say it")
    expect(opened.locator("#instruction-read")).to_have_text("“go to the green box”")
    opened.click("#look")
    expect(opened.locator("#looked .looks")).not_to_have_count(0)
    opened.fill("#question", "what colour is the box?")
    opened.locator("#ask button").click()
    expect(opened.locator("#answer .asked")).to_have_text("what colour is the box?")
    expect(opened.locator("#answer img")).to_have_count(1)
    expect(opened.locator("#answer p").nth(1)).not_to_be_empty()


def test_an_episode_of_a_file_becomes_the_prompt_and_another_is_told(opened: Page, tmp_path: Path) -> None:
    ((_, episode),) = played_seeds(get_task(CARTPOLE), CollectConfig(episodes=1), [3])
    assert isinstance(episode, EncodedEpisode)
    file = tmp_path / "part-0.arrow"
    file.write_bytes(episode.content)
    opened.set_input_files("#upload", file)
    expect(opened.locator("#prompt option:checked")).to_contain_text("part-0.arrow")
    choose(opened, GRID)
    opened.set_input_files("#upload", file)
    expect(opened.get_by_role("alert")).to_contain_text(f"part-0.arrow: no episode of '{GRID}'")
    choose(opened, CARTPOLE)
    expect(opened.get_by_role("alert")).to_be_hidden()


@pytest.mark.parametrize("opened", [PHONE, (320, 640)], indirect=True)
def test_a_phone_shows_the_page_without_scrolling_sideways(opened: Page) -> None:
    choose(opened, GRID)
    opened.click("#expert")
    expect(opened.locator("figcaption b")).to_contain_text("prompted with")
    opened.check("#beside")
    expect(frames(opened)).to_have_count(2)
    opened.click("#look")
    expect(opened.locator("#looked .looks")).not_to_have_count(0)
    opened.click("#control")
    expect(opened.locator("#pad button").first).to_be_visible()
    width = opened.viewport_size["width"]  # type: ignore[index]
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    for button in opened.locator("button, .button").all():
        box = button.bounding_box()
        assert box is None or (box["height"] >= 36 and box["x"] + box["width"] <= width)


def test_everything_that_is_used_has_a_name(opened: Page) -> None:
    choose(opened, CAR)
    opened.click("#control")
    for element in opened.locator("button, input, select").all():
        named = element.evaluate("e => e.ariaLabel || e.textContent.trim() || (e.labels && e.labels.length)")
        assert named, element.evaluate("e => e.outerHTML")


def test_looking_for_a_task_changes_nothing_of_the_one_that_is_played(opened: Page) -> None:
    choose(opened, GRID)
    opened.click("#control")
    expect(opened.locator("#pad button").first).to_be_visible()
    opened.keyboard.press("ArrowLeft")
    expect(opened.locator("figcaption span").first).to_contain_text("step 1,")
    opened.fill("#filter", "cart")
    opened.click("#finish")
    expect(opened.locator("#prompt option:checked")).to_contain_text("you, seed 0")
    expect(opened.locator("#task-name")).to_contain_text(GRID)
    opened.fill("#filter", "")
    opened.click("#again")
    expect(opened.locator("#task-name")).to_contain_text(GRID)
    expect(opened.get_by_role("alert")).to_be_hidden()


def test_a_refused_instruction_is_told_and_forgotten(opened: Page) -> None:
    choose(opened, GRID)
    opened.fill("#instruction", "Geh zum Ball!")
    opened.click("text=say it")
    expect(opened.get_by_role("alert")).to_contain_text("is not of Text")
    opened.click("#again")
    expect(opened.get_by_role("alert")).to_be_hidden()
    expect(frames(opened)).to_have_count(1)


def test_keys_act_on_the_episode_while_the_list_of_tasks_has_the_focus(opened: Page) -> None:
    choose(opened, CARTPOLE)
    opened.focus("#task")
    opened.keyboard.press("c")
    expect(opened.locator("figcaption b")).to_have_text("you act")
    opened.keyboard.press("ArrowRight")
    expect(opened.locator("figcaption span").first).to_contain_text("step 1,")
    expect(opened.locator("#task-name")).to_contain_text(CARTPOLE)


def test_an_episode_that_is_over_is_played_again(opened: Page) -> None:
    opened.uncheck("#endless")
    choose(opened, CARTPOLE)
    expect(opened.locator("figcaption")).to_contain_text("over: return", timeout=20_000)
    expect(opened.locator("#go")).to_contain_text("play")
    opened.click("#go")
    expect(opened.locator("figcaption")).not_to_contain_text("over: return")
    expect(opened.locator("#task-name")).to_contain_text("seed 0")


def test_presses_after_the_end_and_double_clicks_are_no_mistakes(opened: Page) -> None:
    choose(opened, CARTPOLE)
    opened.click("#control")
    expect(opened.locator("#pad button").first).to_be_visible()
    for _ in range(25):
        opened.keyboard.press("ArrowRight")
    expect(opened.locator("figcaption b")).to_contain_text("prompted with")
    opened.click("#control")
    expect(opened.locator("#pad button").first).to_be_visible()
    opened.keyboard.press("ArrowRight")
    opened.dblclick("#finish")
    expect(opened.locator("figcaption b")).to_contain_text("prompted with 1 timesteps")
    expect(opened.get_by_role("alert")).to_be_hidden()


def test_the_next_seed_does_not_take_the_controls_away_from_who_has_asked_for_them(opened: Page) -> None:
    choose(opened, CARTPOLE)
    expect(opened.locator("figcaption")).to_contain_text("over: return", timeout=20_000)
    # The server is busy: the end of the agent's episode is heard after the controls were asked for.
    opened.evaluate("take(true); ended()")
    expect(opened.locator("figcaption b")).to_have_text("you act")
    opened.wait_for_timeout(1500)
    expect(opened.locator("figcaption b")).to_have_text("you act")
    expect(opened.locator("figcaption span").first).to_contain_text("step 0,")
    expect(opened.get_by_role("alert")).to_be_hidden()


def test_the_controls_are_taken_of_the_task_that_was_chosen_a_moment_ago(opened: Page) -> None:
    opened.select_option("#task", GRID)
    opened.click("#control")
    expect(opened.locator("#task-name")).to_contain_text(GRID)
    expect(opened.locator("figcaption b")).to_have_text("you act")
    opened.wait_for_timeout(500)
    expect(opened.locator("figcaption b")).to_have_text("you act")


def test_an_episode_that_is_refused_leaves_the_page_as_it_was(opened: Page) -> None:
    choose(opened, GRID)
    opened.evaluate("begin(2 ** 53)")
    expect(opened.get_by_role("alert")).to_contain_text("seed is")
    opened.evaluate("begin(3)")
    expect(opened.get_by_role("alert")).to_be_hidden()
    expect(opened.locator("figcaption span").first).not_to_contain_text("step 0,")


def test_an_address_without_its_token_is_told_so(served: Any, browser: Browser) -> None:
    own = browser.new_page()
    own.goto(served[1].partition("#")[0])
    expect(own.get_by_role("alert")).to_contain_text("lacks the token")
    own.close()


def test_a_server_that_has_ended_is_told(vocabulary: Vocabulary, text: TextTokenizer, browser: Browser) -> None:
    own = browser.new_page()
    with playing(*checkpoint_of(vocabulary, text, [CARTPOLE])) as (_, address):
        own.goto(address)
        expect(frames(own)).to_have_count(1)
    expect(own.get_by_role("alert")).to_contain_text("gatito play has stopped")
    expect(own.locator("#status")).to_have_text("not connected")
    own.close()
