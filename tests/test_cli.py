"""The command line: every verb, one sentence for bad input, exit code 2."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from toy import Line, layout_of, tiny_recipe, write_store

import gatito.data.tasks as tasks_module
from gatito import cli
from gatito.data.tasks import Reference, registry
from gatito.model import GatitoForCausalLM
from gatito.tokenizers import TextTokenizer, Vocabulary
from gatito.train.checkpoint import resolve_checkpoint
from gatito.train.trainer import train

Run = Callable[..., tuple[int, str, str]]
FILES = {
    "key.yaml": "train:\n  stepz: 3\n",
    "section.yaml": "trainn:\n  steps: 3\n",
    "syntax.yaml": "train: [1\n",
    "type.yaml": "train:\n  steps: many\n",
    "impossible.yaml": "train:\n  batch: 5\n  accumulation: 3\n",
    "mixture-key.yaml": "datasets:\n- source: captions:digits\n  wieght: 2\n",
    "mixture-section.yaml": "dataset:\n- source: captions:digits\n",
    "mixture-source.yaml": "datasets:\n- source: caption:digits\n",
    "mixture-weight.yaml": "datasets:\n- source: captions:digits\n  weight: -2\n",
    "mixture-captions.yaml": "datasets:\n- source: captions:digit\n",
    "mixture-minari.yaml": "datasets:\n- source: minari:nothing\n",
    "mixture-empty.yaml": "datasets: []\n",
    "held.yaml": "datasets:\n- source: captions:digits\nheld_out:\n  episodes: 1.0\n",
    "empty.yaml": "",
    "number.yaml": "datasets:\n- source: 3\n",
    "foo.yaml": "foo: 1\n",
    "no-data.yaml": "train:\n  steps: 3\n",
    "no-model.yaml": "model:\ntrain:\n  steps: 3\n",
    "garbage-model.yaml": "datasets:\n- source: captions:digits\ntext_model: mixture-key.yaml\n",
    "list.yaml": "- source: captions:digits\n",
    "binary.yaml": "\x00\x01",
    "mixture-filter.yaml": "expert_filter: null\ndatasets:\n- source: captions:digits\n",
    "code-task.yaml": "datasets:\n- source: task:my_code:CartPole-v1\n",
    "code-minari.yaml": "datasets:\n- source: minari:my_code:CartPole-v1\n",
    "code-env.yaml": "datasets:\n- source: task:classic/cartpole\ncollect:\n  env: my_code:CartPole-v1\n",
    "code-policy.yaml": "datasets:\n- source: task:classic/cartpole\ncollect:\n  policy: my_code:act\n",
    "code-agent.yaml": "datasets:\n- source: task:classic/cartpole\ncollect:\n  agents: {'my_code:act': 1}\n",
    "my_code.py": "raise SystemExit('a file named code and it ran')\n",
}
BAD = {
    # unknown names: the nearest valid one
    "trian": "unknown verb or choice 'trian'; did you mean 'train'?",
    "data biuld": "unknown verb or choice 'biuld'; did you mean 'build'?",
    "tokens classic/cartpol": "did you mean 'classic/cartpole'?",
    "tokens CartPole-v7": "did you mean 'CartPole-v1'?",
    "tokens captions:digit": "unknown caption dataset 'digit'; did you mean 'digits'?",
    "tokens classic/cartpole --epsiode 1": "unknown option '--epsiode'; did you mean '--episode'?",
    "tasks --jsonn": "unknown option '--jsonn'; did you mean '--json'?",
    "tasks --measure classic/acrobatt": "unknown task 'classic/acrobatt'; did you mean 'classic/acrobot'?",
    "data collect --tasks classic/cartpole,classic/pendulun --out d": "did you mean 'classic/pendulum'?",
    "data collect --tasks classic/cartpole --agents expret --out d": "agent 'expret'; did you mean 'expert'?",
    "data collect --tasks classic/cartpole --agent noisy --out d": "unknown option '--agent'; did you mean",
    "data collect --tasks clasic/* --out d": "unknown task 'clasic/*'",
    "data collect --env CartPol-v1 --policy random --out d": "did you mean 'CartPole-v1'?",
    "data collect --env nowhere:Nest-v0 --policy random --out d": "--env nowhere:Nest-v0: ModuleNotFoundError: No",
    "data collect --env os:CartPol-v1 --policy random --out d": "did you mean 'CartPole-v1'?",
    "tokens os:CartPole-v1": "environment id 'os:CartPole-v1' names a module",
    "data collect --env CartPole-v1 --policy nowhere:act --out d": "--policy nowhere:act: ModuleNotFoundError: No",
    "data collect --env CartPole-v1 --policy os:nothing --out d": "--policy os:nothing: module 'os' has no 'nothing'",
    "data collect --env CartPole-v1 --policy ./nothing --out d": "no checkpoint at ./nothing",
    "tasks --names ml45-tran": "unknown task 'ml45-tran'; did you mean 'ml45-train'?",
    "tasks --measure babyai/go-to-obj": "its references are those of babyai/go-to-obj-symbolic",
    "data check nothing": "no Minari dataset at nothing",
    "data check d/*": "'d/*' finds no dataset and no store",
    "data info nothing": "no Minari dataset at nothing",
    "data report nothing --out r.html": "no Minari dataset at nothing",
    "data card nothing": "no Minari dataset at nothing",
    "data build --config gatoo --out b": "unknown mixture 'gatoo'; did you mean 'gato'?",
    "data build --config held.yaml --out b": "held_out.episodes is 1.0, allowed a share from 0 to below 1",
    "train --config tinyy --data s --out o": "unknown recipe 'tinyy'; did you mean 'tiny'?",
    "train --config key.yaml --data s --out o": "unknown key 'train.stepz'; did you mean 'train.steps'?",
    "train --config section.yaml --data s --out o": "unknown key 'trainn.steps'; did you mean 'train.steps'?",
    "train --config tiny --data s --out o --train.stepz 3": "'--train.stepz'; did you mean '--train.steps'?",
    "train --config tiny --data s --out o --model.loss-over grup": "'grup'; did you mean 'group'?",
    "data build --config mixture-key.yaml --out b": "unknown key 'wieght'; did you mean 'weight'?",
    "data build --config mixture-filter.yaml --out b": "key 'expert_filter' belongs in an entry of 'datasets:'",
    "data build --config code-task.yaml --out b": "unknown task 'my_code:CartPole-v1'",
    "data build --config code-minari.yaml --out b": "no Minari dataset at my_code:CartPole-v1",
    "data build --config code-env.yaml --out b": "unknown key 'collect.env'",
    "data build --config code-policy.yaml --out b": "unknown key 'collect.policy'",
    "data build --config code-agent.yaml --out b": "unknown agent 'my_code:act'",
    "data build --config mixture-section.yaml --out b": "unknown key 'dataset'; did you mean 'datasets'?",
    "data build --config mixture-source.yaml --out b": "unknown kind of source 'caption'; did you mean 'captions'?",
    "data build --config mixture-captions.yaml --out b": "unknown caption dataset 'digit'; did you mean 'digits'?",
    "eval ./nothing --promt demo --out e": "unknown option '--promt'; did you mean '--prompt'?",
    "eval ./nothing --prompt begining --out e": "'begining'; did you mean 'beginning'?",
    # what is not there
    "": "a verb is missing; --help lists them",
    "data": "a verb is missing; --help lists them",
    "train --config nothing.yaml --data s --out o": "no recipe file nothing.yaml",
    "train --config tiny --data s --out o": "no tokenized store at s: s/mixture.json is missing; run gatito",
    "train --config key.yaml --out o": "unknown key 'train.stepz'",
    "train --out o": "missing: --data",
    "train --config tiny --train.lr 1e-3 --out o": "no tokenized store at demo/store: demo/store/mix",
    "eval ./nothing --out e": "no checkpoint at ./nothing",
    "eval ./nothing": "missing: --out",
    "eval ./nothing --tasks classic/cartpole --env CartPole-v1 --out e": "give --tasks or --env, not both",
    "tokens minari:nothing": "no Minari dataset at nothing",
    "tokens text:nothing.txt": "cannot read nothing.txt: it is missing",
    "tokens captions:digits --episode 99999": "has no episode 99999; it has 1437, 0 to 1436",
    "data build --config mixture-minari.yaml --out b": "no Minari dataset at nothing",
    "data build --config mixture-empty.yaml --out b": "the mixture has no datasets",
    "data build --config nothing.yaml --out b": "nothing.yaml; in the package: everything, forty, gato, hundred",
    "data collect --out d": "missing: --tasks or --env; name what to collect",
    "data collect --env CartPole-v1 --out d": "--env CartPole-v1 has no scripted expert; name who acts: --policy",
    "data check": "missing: SOURCES",
    "data report d": "missing: --out",
    "baseline": "a verb is missing; --help lists them",
    "baseline clone --out b": "missing: --demonstrations-from, --tasks",
    "baseline retreive --out b": "unknown verb or choice 'retreive'; did you mean 'retrieve'?",
    # what is no configuration, or one of another verb
    "data build --config empty.yaml --out b": "empty.yaml: holds nothing, expected keys and values",
    "train --config list.yaml --data s --out o": "list.yaml: holds list, expected keys and values",
    "data build --config binary.yaml --out b": "binary.yaml: not YAML",
    "train --config mixture-captions.yaml --data s --out o": "unknown key 'datasets'; did you mean 'data'?",
    # values
    "tokens classic/cartpole --episode -1": "--episode is -1, allowed 0 and more",
    "train --config syntax.yaml --data s --out o": "line 1, column 8",
    "train --config type.yaml --data s --out o": "train.steps",
    "train --config tiny --data s --out o --train.lr nan": "train.lr is nan, expected a finite number",
    "data build --config number.yaml --out b": "datasets: source is 3, expected str",
    "data build --config foo.yaml --out b": "unknown key 'foo'; valid: bins, clip_actions, collect,",
    "data build --config garbage-model.yaml --out b": "mixture-key.yaml: not a SentencePiece model",
    "data collect --tasks classic/cartpole, --out d": "'classic/cartpole,' names nothing between or after its commas",
    "tokens classic/cartpole --timesteps 0": "--timesteps is 0, allowed 1 and more",
    "data collect --tasks classic/cartpole --out key.yaml": "--out key.yaml cannot be written",
    "train --config tiny --data s --out key.yaml": "--out key.yaml cannot be written",
    "demo --out key.yaml": "--out key.yaml cannot be written",
    "train --config impossible.yaml --data s --out o": "--train.batch 5 does not divide by --train.accumulation 3",
    "train --config tiny --data s --out o --train.lr=-1": "--train.lr is -1.0, allowed > 0",
    "train --config tiny --data s --out o --train.minutes .inf": "train.minutes is inf, ",
    "train --config tiny --data s --out o --model.latents 9": "--model.latents is 9, allowed 0",
    "train --config tiny --data s --out o --model.resampler-depth 3": "--model.resampler_depth is 3, allowed 0 to 2",
    "train --config tiny --data s --out o --model.action-layers=-1": "--model.action_layers is -1, allowed 0 (none)",
    "train --config tiny --data s --out o --model.latents 0 --model.resample-images": "resample_images needs",
    "train --config tiny --data s --out o --model.latents 0 --model.resampler-depth 2": "resampler_depth needs",
    "train --config tiny --data s --out o --train.predict-observations": "--train.predict_observations needs",
    "info demmo": "unknown recipe or checkpoint 'demmo'; did you mean 'demo'?",
    "info demo --data s": "no tokenized store at s",
    "info key.yaml --data s": "unknown key 'train.stepz'; did you mean 'train.steps'?",
    "info demo --data=s": "no tokenized store at s",
    "info 364m --gpus 0": "--gpus is 0, allowed 1 and more",
    "info 364m --gpus some": "gpus is some, expected a whole number",
    "info 364m --gpus 3": "--train.batch 512 does not divide by 3 GPUs or processes x --train.accumulation 2",
    "info demo --model.latents 8 --train.context 4": "--train.context is 4, and an observation takes 8 positions",
    "info 364n": "unknown recipe or checkpoint '364n'; did you mean '364m'?",
    "info nowhere --gpus 2": "unknown recipe or checkpoint 'nowhere'",
    "train --config no-model.yaml --data s --out o": "model: holds nothing, expected keys and values",
    "data build --config mixture-weight.yaml --out b": "weight of 'captions:digits' is -2.0, allowed > 0",
    "data collect --tasks classic/cartpole --episodes 0 --out d": "episodes is 0, allowed 1 and more",
    "demo --out .": "is not empty; remove it or choose another --out",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with good and bad YAML files in it."""
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run one command line in the current folder: exit code, stdout, stderr."""

    def run_line(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gatito", *arguments])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_line


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary, text: TextTokenizer) -> Path:
    """A run of two steps on a made-up task and on a cart-pole with other spaces than Gymnasium's."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("cli")
    layout = layout_of(Line(), vocabulary, text)
    sequences = [layout.episode_tokens(*Line().demonstration())]
    control = {"toy/line": (layout, sequences), "classic/cartpole": (layout, sequences)}
    write_store(root / "store", text, vocabulary, control)
    train(tiny_recipe(steps=2), root / "store", root / "run")
    return root


@pytest.mark.parametrize("line", BAD, ids=[line or "nothing" for line in BAD])
def test_bad_input_is_answered_in_one_sentence_with_code_2(line: str, run: Run, folder: Path) -> None:
    before = sorted(folder.iterdir())
    code, out, err = run(*line.split())
    assert code == 2
    assert out == ""
    lines = [part for part in err.replace("\r", "\n").split("\n") if part]
    said = [part for part in lines if not part.startswith("tokenize:")]  # data build shows its progress
    assert len(said) == 1, err
    assert said[0].startswith("gatito: ")
    assert BAD[line] in said[0]
    assert len(lines) == 1 or line.startswith("data build")
    assert sorted(folder.iterdir()) == before  # nothing half-written is left


def test_a_missing_extra_is_answered_with_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = tasks_module.importlib.util.find_spec
    monkeypatch.setattr(
        tasks_module.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "minigrid" else find_spec(name, *rest),
    )
    code, _, err = run("data", "collect", "--tasks", "babyai/go-to-obj", "--out", "d")
    assert (code, err) == (2, "gatito: task 'babyai/go-to-obj' needs minigrid: pip install 'gatito[babyai]'\n")
    code, out, _ = run("tasks")
    assert code == 0
    line = next(line for line in out.splitlines() if line.startswith("babyai/go-to-obj "))
    assert line.endswith("(not installed)")


def test_a_layout_that_differs_between_checkpoint_and_environment_is_refused(run: Run, checkpoint: Path) -> None:
    code, _, err = run(
        "eval", str(checkpoint / "run"), "--tasks", "classic/cartpole", "--out", "e", "--episodes", "1"
    )
    assert code == 2
    said = [part for part in err.replace("\r", "\n").split("\n") if part.startswith("gatito: ")]
    assert len(said) == 1
    assert "the spaces have changed since the data was built, train again" in said[0]
    assert "Traceback" not in err
    assert not Path("e").exists()


def test_a_task_that_the_checkpoint_was_not_trained_on_is_refused(run: Run, checkpoint: Path) -> None:
    code, _, err = run("eval", str(checkpoint / "run"), "--tasks", "classic/acrobot", "--out", "e")
    assert code == 2
    assert "this checkpoint was not trained on task 'classic/acrobot'; did you mean" in err
    assert not Path("e").exists()


def test_training_over_an_existing_run_is_refused(run: Run, checkpoint: Path) -> None:
    code, _, err = run(
        "train", "--config", "tiny", "--data", str(checkpoint / "store"), "--out", str(checkpoint / "run")
    )
    assert code == 2
    assert err.count("\n") == 1
    assert "holds a run already; continue it with --train.resume auto, or choose another --out" in err


def test_a_damaged_store_is_refused_naming_the_file(run: Run, checkpoint: Path, folder: Path) -> None:
    import shutil

    shutil.copytree(checkpoint / "store", folder / "store")
    path = folder / "store" / "toy-line" / "ids.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    code, _, err = run("train", "--config", "tiny", "--data", "store", "--out", "o")
    assert (code, err.count("\n")) == (2, 1)
    assert "store/toy-line/ids.bin does not match its SHA-256" in err
    assert not Path("o").exists()


def test_an_unwritable_folder_is_named(run: Run, checkpoint: Path, folder: Path) -> None:
    (folder / "file").write_text("")
    code, _, err = run(
        "train", "--config", "tiny", "--data", str(checkpoint / "store"), "--out", "file/run", "--train.context=64"
    )
    assert code == 2
    assert "--out file/run cannot be written" in err
    assert "Not a directory" in err
    assert "Traceback" not in err


# Good input


@pytest.mark.parametrize("spelling", ["--first-seed", "--first_seed"])
def test_dashes_and_underscores_mean_the_same_in_options(
    spelling: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gatito.data_commands as module

    seen = []
    monkeypatch.setattr(module, "collect", lambda tasks, out, config: seen.append((tasks, out, config)) or [])
    line = f"data collect --tasks classic/cartpole,classic/pendulum --out some-folder {spelling}=7 --episodes 3"
    assert run(*line.split())[0] == 0
    assert run(*line.replace("=7", " 7").split())[0] == 0
    assert seen[0] == seen[1]
    tasks, out, config = seen[0]
    assert (tasks, out) == (["classic/cartpole", "classic/pendulum"], Path("some-folder"))
    assert (config.first_seed, config.episodes) == (7, 3)


def test_training_resumes_from_the_command_line_and_names_the_next_command(run: Run, checkpoint: Path) -> None:
    shared = ["--config", "tiny", "--data", str(checkpoint / "store"), "--out", "my-run", "--train.context", "64"]
    options = ["--train.steps=2", "--train.batch=2", "--model.width=32", "--train.log-every", "1"]
    code, out, _ = run("train", *shared, *options)
    assert code == 0
    assert out.endswith("my-run/checkpoints/step-00000002\nnext: gatito eval my-run --out my-run/eval\n")
    assert len(Path("my-run/metrics.jsonl").read_text().splitlines()) == 2
    code, out, _ = run("train", *shared, *options, "--train.resume", "auto")
    assert code == 0
    code, _, err = run("train", *shared, *options, "--train.resume", "auto", "--train.seed", "5")
    assert code == 2
    assert "train.seed was 0, now 5" in err


def test_tasks_lists_what_is_known(run: Run) -> None:
    code, out, err = run("tasks", "--json")
    assert (code, err) == (0, "")
    rows = json.loads(out)
    assert [row["id"] for row in rows] == sorted(registry())
    assert {key for row in rows for key in row} == {
        "id", "domain", "extra", "license", "installed", "random", "expert"
    }  # fmt: skip
    cartpole = next(row for row in rows if row["id"] == "classic/cartpole")
    assert (cartpole["domain"], cartpole["extra"], cartpole["expert"]) == ("classic", "classic", 500.0)
    assert run("tasks")[1].count("\n") == len(rows) + 2


KEYS = ["id", "modality", "meaning", "local_position", "loss_mask"]


@pytest.mark.parametrize(
    ("source", "modalities"),
    [
        ("classic/cartpole", {"continuous", "separator", "discrete"}),
        ("classic/pendulum", {"continuous", "separator"}),
        ("babyai/go-to-obj-s4", {"discrete", "patch", "text", "separator"}),
        ("captions:digits", {"patch", "text"}),
        ("text:notes.txt", {"text"}),
    ],
)
def test_tokens_as_json_have_exactly_their_keys(source: str, modalities: set[str], run: Run, folder: Path) -> None:
    (folder / "notes.txt").write_text("A short note.")
    code, out, _ = run("tokens", source, "--episode", "0", "--json")
    assert code == 0
    rows = json.loads(out)
    assert {row["modality"] for row in rows} == modalities
    for row in rows:
        assert list(row) == KEYS
        assert (row["id"] is None) == (row["modality"] == "patch")
        assert isinstance(row["meaning"], str)
        assert row["meaning"]
        assert isinstance(row["loss_mask"], bool)
        assert isinstance(row["local_position"], int)
    assert any(row["loss_mask"] for row in rows)
    is_text = source.startswith(("text:", "captions:"))
    assert all(is_text or not row["loss_mask"] for row in rows if row["modality"] == "text")


def test_tokens_of_a_cart_pole_say_what_they_mean(run: Run) -> None:
    rows = json.loads(run("tokens", "classic/cartpole", "--json")[1])
    first = gym.make("CartPole-v1").reset(seed=0)[0]
    for i, row in enumerate(rows[:4]):
        name, value = row["meaning"].split(" = ")
        assert (name, row["local_position"]) == (f"observation[{i}]", i)
        assert float(value) == pytest.approx(float(first[i]), abs=2e-3)
    assert rows[4] == dict(zip(KEYS, [34_048, "separator", "observation | action", 4, False], strict=True))
    assert rows[5]["id"] in (33_024, 33_025)
    assert rows[5]["loss_mask"]
    assert rows[5]["meaning"] == f"action[0] = {rows[5]['id'] - 33_024}"


def test_tokens_of_a_store_are_those_of_its_episode(run: Run, checkpoint: Path, text: TextTokenizer) -> None:
    code, out, _ = run("tokens", str(checkpoint / "store"), "--json")
    assert code == 0
    layout = layout_of(Line(), Vocabulary(text_size=text.size), text)
    expected = layout.episode_tokens(*Line().demonstration())
    assert [row["id"] for row in json.loads(out)] == expected.ids.tolist()
    assert [row["loss_mask"] for row in json.loads(out)] == expected.loss_mask.tolist()
    table = run("tokens", str(checkpoint / "store"), "--timesteps", "3")[1].splitlines()
    assert len(table) == 1 + 3 * 3
    assert np.mean(["target" in line for line in table[1:]]) == pytest.approx(1 / 3)


def test_info_says_what_a_context_holds_for_each_task(run: Run, checkpoint: Path) -> None:
    store = str(checkpoint / "store")
    code, printed, _ = run("info", "paper", "--data", store)
    assert code == 0
    assert "context 256 positions" in printed
    # One value, the separator and one action: 3 tokens and 3 positions a timestep.
    (row,) = [line.split() for line in printed.splitlines() if line.startswith("toy/line")]
    assert row == ["toy/line", "3.0", "3.0", "85", "timesteps"]
    code, printed, _ = run("info", "demo", "--data", store)
    (row,) = [line.split() for line in printed.splitlines() if line.startswith("toy/line")]
    assert row[:3] == ["toy/line", "3.0", "1.0"]
    assert f"context {row[3]} positions" in printed
    _, changed, _ = run("info", "demo", "--data", store, "--model.latents", "4", "--train.context", "80")
    (row,) = [line.split() for line in changed.splitlines() if line.startswith("toy/line")]
    assert row == ["toy/line", "3.0", "4.0", "20", "timesteps"]
    assert "resampler" in printed
    assert "action decoder" in printed


def quantities(printed: str) -> dict[str, list[float]]:
    """The numbers of `gatito info` by the name of their line, letters and units of powers of 1000 read."""
    powers = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21}
    found = {}
    for line in printed.splitlines():
        parts = re.findall(r"([0-9][0-9.,]*) ?([kMGTPEZ]?)B?(?=\s|$)", line[20:])
        if line.startswith("  ") and parts:
            found[line[:20].strip()] = [float(n.replace(",", "")) * powers.get(unit, 1.0) for n, unit in parts]
    return found


def test_info_of_a_large_recipe_needs_no_data_and_says_what_it_costs(run: Run) -> None:
    code, printed, _ = run("info", "364m")
    assert code == 0
    found = quantities(printed)
    assert found["total"]
    assert "  non-embedding          340,623,584   without the lookup tables" in printed
    forward, training = found["per token"]
    assert training == pytest.approx(3 * forward, rel=1e-2)
    assert forward == pytest.approx(2 * 340_623_584, rel=0.1)  # and attention
    assert found["per timestep"][1] == pytest.approx(44 * training, rel=1e-2)
    assert found["per step"][1] == pytest.approx(512 * 1024 * training, rel=1e-2)
    assert found["1,000,000 steps"][1] == pytest.approx(1e6 * found["per step"][1], rel=1e-2)
    assert "assumed, as there is no store: timesteps of 39 numbers, a separator and 4 action tokens" in printed
    assert "memory on one GPU: 256 rows at a time" in printed
    assert found["weights"][0] == pytest.approx(4 * 394_202_336, rel=0.02)
    assert found["moments"][0] == pytest.approx(2 * found["weights"][0], rel=0.02)


def test_info_of_shards_says_that_each_gpu_needs_less(run: Run) -> None:
    whole, sharded = (
        quantities(run("info", "364m", "--gpus", "8", "--train.sharding", sharding)[1])
        for sharding in ("none", "fsdp")
    )
    for name in ("weights", "gradients", "moments", "total"):
        assert sharded[name][0] < whole[name][0]
    assert sharded["activations"] == whole["activations"]


def test_info_measures_costs_on_the_rows_of_a_store(run: Run, checkpoint: Path) -> None:
    store = str(checkpoint / "store")
    code, printed, _ = run("info", "paper", "--data", store, "--train.prompt-share", "0")
    assert code == 0
    assert f"measured on 64 rows of {store};" in printed
    (share,) = re.findall(r"; ([0-9.]+)% of the tokens are targets", printed)
    assert float(share) == pytest.approx(100 / 3, abs=0.5)  # of three tokens one is an action; the last may be cut
    found = quantities(printed)
    assert found["per timestep"][1] == pytest.approx(3 * found["per token"][1], rel=1e-2)


def test_info_of_a_checkpoint_needs_no_data(run: Run, checkpoint: Path) -> None:
    code, printed, _ = run("info", str(checkpoint / "run"))
    assert code == 0
    (row,) = [line.split() for line in printed.splitlines() if line.startswith("toy/line")]
    assert row == ["toy/line", "3.0", "3.0", "21", "timesteps"]  # of 64
    assert "the texts inside observations counted as empty" in printed
    model = GatitoForCausalLM.from_pretrained(resolve_checkpoint(checkpoint / "run"))
    counts = [line.rsplit(maxsplit=1) for line in printed.split("\n\n")[1].splitlines()[1:-1]]
    counted = {name.strip(): int(count.replace(",", "")) for name, count in counts}
    assert counted.pop("total") == sum(counted.values()) == sum(p.numel() for p in model.parameters())
    assert "per timestep" in printed
    assert "memory" not in printed  # a checkpoint has no batch
    code, _, err = run("info", str(checkpoint / "run"), "--gpus", "2")
    assert (code, "--gpus 2 is for recipes" in err) == (2, True)
    code, _, err = run("info", str(checkpoint / "run"), "--data", "nowhere")
    assert (code, "no tokenized store at nowhere" in err) == (2, True)


@pytest.mark.slow
def test_an_evaluation_writes_its_results_and_a_report(run: Run, folder: Path) -> None:
    line = "data collect --tasks classic/cartpole --episodes 4 --out d"
    assert run(*line.split())[0] == 0
    (folder / "mix.yaml").write_text("datasets:\n- source: minari:d/classic/cartpole/noisy-v0\n")
    assert run("data", "build", "--config", "mix.yaml", "--out", "s")[0] == 0
    small = "--train.steps 2 --model.width 16 --model.layers 1 --model.heads 1 --model.feed_forward 16"
    assert run(*f"train --config tiny --data s --out r {small}".split())[0] == 0
    code, out, _ = run(
        *["eval", "r", "--episodes", "2", "--prompt", "beginning", "--processes", "0", "--out", "r/eval"]
    )
    assert code == 0
    assert "classic/cartpole" in out
    results = json.loads((folder / "r" / "eval" / "results.json").read_text())
    assert results["schema"] == 3
    assert [record["prompt"] for record in results["records"]] == ["beginning", "beginning"]
    assert (results["tasks"][0]["id"], results["tasks"][0]["episodes"]) == ("classic/cartpole", 2)
    assert "model-index" in (folder / "r" / "eval" / "card.md").read_text()
    assert "<svg" in (folder / "r" / "eval" / "report.html").read_text()
    code, out, _ = run("tokens", "minari:d/classic/cartpole/noisy-v0", "--json")
    assert code == 0
    assert json.loads(out)[0]["meaning"].startswith("observation[0] = ")


def test_an_output_that_cannot_be_written_is_found_before_the_evaluation(run: Run, checkpoint: Path) -> None:
    Path("file").write_text("x")
    code, _, error = run("eval", str(checkpoint / "run"), "--out", "file/e")
    assert code == 2
    assert "--out file/e cannot be written (file: Not a directory)" in error.replace(str(Path.cwd()) + "/", "")


def test_tokens_of_any_gymnasium_environment_are_shown(run: Run) -> None:
    code, out, _ = run("tokens", "Blackjack-v1", "--json")
    assert code == 0
    assert {row["modality"] for row in json.loads(out)} == {"discrete", "separator"}


def test_references_are_measured_into_a_file_that_keeps_those_of_other_tasks(run: Run, folder: Path) -> None:
    line = "tasks --measure classic/mountain-car-continuous --episodes 2 --out m.json"
    assert run(*line.split())[0] == 0
    measured = json.loads((folder / "m.json").read_text())["tasks"]
    assert (
        measured["classic/mountain-car-continuous"]["random"] < measured["classic/mountain-car-continuous"]["expert"]
    )
    assert Reference(**measured["classic/mountain-car-continuous"]).episodes == 2
    assert run(*line.replace("mountain-car-continuous", "cartpole").split())[0] == 0
    both = json.loads((folder / "m.json").read_text())["tasks"]
    assert {task: both[task] for task in measured} == measured
    assert sorted(both) == ["classic/cartpole", "classic/mountain-car-continuous"]
    code, _, err = run(*line.replace("episodes 2", "episodes 3").split())
    assert (code, "m.json was measured over 2 episodes, not 3" in err) == (2, True)


def test_tokens_of_one_dataset_of_a_store_are_shown_by_its_name(run: Run, checkpoint: Path) -> None:
    store = checkpoint / "store"
    name = next(p.name for p in store.iterdir() if p.is_dir())
    assert run("tokens", str(store / name), "--json") == run("tokens", str(store), "--json")
    code, _, error = run("tokens", str(store / "othr"))
    assert code == 2
    assert "unknown dataset of" in error


def test_an_evaluation_never_overwrites_another(run: Run, checkpoint: Path, folder: Path) -> None:
    (folder / "e").mkdir()
    (folder / "e" / "results.json").write_text("{}")
    code, _, error = run("eval", str(checkpoint / "run"), "--out", "e")
    assert code == 2
    assert "results.json exists; choose another --out or remove it" in error
    assert (folder / "e" / "results.json").read_text() == "{}"


def test_a_tracker_that_is_not_installed_is_answered_with_what_to_install(
    run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trackio" else find(name))
    line = f"train --config tiny --data {checkpoint / 'store'} --out o --train.tracker trackio"
    code, _, error = run(*line.split())
    assert code == 2
    assert "--train.tracker trackio needs its package: pip install trackio" in error
    assert not Path("o").exists()


def test_printed_training_configs_feed_back_in(run: Run, folder: Path) -> None:
    line = ["train", "--config", "tiny", "--data", "s", "--out", "o"]
    code, printed, err = run(*line, "--train.lr", "0.5", "--model.drop-path", "0.25", "--print_config")
    assert (code, err) == (0, "")
    values = yaml.safe_load(printed)
    assert values["train"]["lr"] == 0.5
    assert values["train"]["steps"] == 200  # of the recipe
    assert values["model"]["drop_path"] == 0.25
    (folder / "again.yaml").write_text(printed)
    again = run("train", "--config", "again.yaml", "--data", "s", "--out", "o", "--print-config")
    assert (again[0], yaml.safe_load(again[1])) == (0, values)
    code, _, err = run("train", "--config", "again.yaml", "--data", "s", "--out", "o")
    assert (code, "no tokenized store at s" in err) == (2, True)  # the config was accepted


def test_printed_mixtures_feed_back_in(run: Run, folder: Path) -> None:
    (folder / "mix.yaml").write_text("datasets:\n- source: captions:digits\n  weight: 2\n- source: text:notes.txt\n")
    (folder / "notes.txt").write_text("A short note. " * 20)
    code, printed, err = run("data", "build", "--config", "mix.yaml", "--out", "b", "--print_config")
    assert (code, err) == (0, "")
    values = yaml.safe_load(printed)
    assert [d["source"] for d in values["datasets"]] == ["captions:digits", "text:notes.txt"]
    assert [d["weight"] for d in values["datasets"]] == [2.0, 1.0]
    assert not Path("b").exists()
    (folder / "again.yaml").write_text(printed)
    code, out, _ = run("data", "build", "--config", "again.yaml", "--out", "b")
    assert code == 0
    assert "captions-digits" in out
    assert "66.67%" in out
    assert Path("b/mixture.json").is_file()
    before = {path: path.stat().st_mtime_ns for path in Path("b").rglob("*.bin")}
    assert run("data", "build", "--config", "again.yaml", "--out", "b")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in Path("b").rglob("*.bin")} == before


def test_data_verbs_look_at_every_dataset_though_one_is_broken(run: Run, folder: Path) -> None:
    line = "data collect --tasks classic/cartpole,classic/acrobot --episodes 2 --processes 1 --out d"
    assert run(*line.split())[0] == 0
    (folder / "d/classic/acrobot/noisy-v0/data/metadata.json").write_text("{")
    code, out, err = run("data", "check", "d/*/*/*")
    assert (code, "1 errors; what has them does not train" in err) == (2, True)
    assert "acrobot/noisy-v0/data/metadata.json: not JSON" in out
    assert "d/classic/cartpole/noisy-v0: 2 episodes" in out
    code, out, err = run("data", "info", "d/*/*/*")
    assert (code, "not JSON" in err) == (2, True)
    (folder / "d/classic/acrobot/noisy-v0/data/metadata.json").unlink()
    code, out, _ = run("data", "check", "d/*/*/*")
    path = "d/classic/acrobot/noisy-v0"
    assert (
        f"{path}/data/metadata.json is missing though there are episodes beside it; remove {path} and collect" in out
    )
    code, out, _ = run("data", "info", "d/*/*/*")
    assert "1 datasets, 2 episodes" in out
    assert run("data", "card", "d/classic/cartpole/noisy-v0", "--out", "card.md")[0] == 0
    assert run("data", "card", "d/classic/cartpole/noisy-v0", "--out", "card.md")[0] == 2
    assert run("data", "report", "d/classic/cartpole/noisy-v0", "--out", "page.html")[0] == 0
    assert (folder / "page.html").read_text().startswith("<!doctype html>")


@pytest.mark.slow
def test_the_module_runs_and_fails_without_a_traceback(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "gatito", "data", "collect", "--tasks", "classic/cartpol", "--out", "d"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "gatito: unknown task 'classic/cartpol'; did you mean 'classic/cartpole'?\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("word " * 100_000)
    command = f"{sys.executable} -m gatito tokens text:notes.txt --json | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert len(done.stdout) == 10
    assert done.stderr == ""
