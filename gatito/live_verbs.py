"""The verbs of the command line that generate, serve and play; what does it is imported when it is called."""

from pathlib import Path
from typing import TYPE_CHECKING

from gatito.errors import UserError
from gatito.verbs import names_of

if TYPE_CHECKING:
    from gatito.baselines.config import CloneConfig
    from gatito.eval.config import EvaluationConfig
    from gatito.play.config import PlayConfig
    from gatito.serve.config import ServeConfig


def serve(checkpoint: str | None, config: "ServeConfig", probe: bool = False) -> None:
    """Serve a checkpoint to robots and simulators: a policy server in openpi-client's wire format.

    Args:
        checkpoint: Folder of a run or checkpoint, or `hf:owner/name` on the hub; not needed with --probe.
        probe: Measure which recipes of the package keep up with --hz on this machine, instead of serving.
    """
    if probe:
        from gatito.serve.probe import DEFAULT_HZ, probe_recipes

        probe_recipes(config.hz or DEFAULT_HZ, threads=config.threads, int8=config.int8)
        return
    if checkpoint is None:
        raise UserError("missing: CHECKPOINT")
    try:
        from gatito.serve.command import serve_checkpoint
    except ImportError as error:
        raise UserError(f"gatito serve needs {error.name}: pip install 'gatito[serve]'") from None
    serve_checkpoint(checkpoint, config)


def play(checkpoint: str, config: "PlayConfig") -> None:
    """Meet the agent on a local page: watch it act, instruct and ask it, take the controls and prompt it.

    Args:
        checkpoint: Folder of a run or checkpoint, or `hf:owner/name` on the hub.
    """
    try:
        from gatito.play.command import play_checkpoint
    except ImportError as error:
        raise UserError(f"gatito play needs {error.name}: pip install 'gatito[serve]'") from None
    play_checkpoint(checkpoint, config)


def retrieve(
    demonstrations_from: str, tasks: str, out: str, config: "EvaluationConfig", demonstrations: int | None = None
) -> None:
    """Play the action of the nearest observation of the demonstrations; write results.json and report.html.

    Args:
        demonstrations_from: Minari dataset, or folder of datasets by task.
        tasks: Task ids, groups and patterns, separated by commas.
        out: Folder for the results; the same command continues what was killed.
        config: How episodes are played.
        demonstrations: Demonstrations of each task, the first ones; all by default.
    """
    _baseline(demonstrations_from, tasks, out, config, demonstrations, None)


def clone(
    demonstrations_from: str,
    tasks: str,
    out: str,
    config: "EvaluationConfig",
    cloning: "CloneConfig",
    demonstrations: int | None = None,
) -> None:
    """Train a plain network for each task on its demonstrations alone, and play it; write results.json, report.html.

    Args:
        demonstrations_from: Minari dataset, or folder of datasets by task.
        tasks: Task ids, groups and patterns, separated by commas.
        out: Folder for the results and the policies; the same command continues what was killed.
        config: How episodes are played.
        cloning: How the networks are trained.
        demonstrations: Demonstrations of each task, the first ones; all by default.
    """
    _baseline(demonstrations_from, tasks, out, config, demonstrations, cloning)


def _baseline(
    source: str,
    tasks: str,
    out: str,
    config: "EvaluationConfig",
    count: int | None,
    cloning: "CloneConfig | None",
) -> None:
    from gatito.baselines.command import run_baseline
    from gatito.data.tasks import matching

    run_baseline(matching(names_of(tasks, "tasks")), source, Path(out), config, count=count, cloning=cloning)


def generate(
    checkpoint: str,
    image: list[str] | None = None,
    text: str | None = None,
    ask: bool = False,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Write text: go on with one, caption an image, or answer a question.

    Args:
        checkpoint: Folder of a run or checkpoint, or `hf:owner/name` on the hub.
        image: Image files, shown before the text; alone they are captioned.
        text: With images a question about them, else the beginning of a text.
        ask: Read a text without images as a question, too.
        max_new_tokens: Tokens to write at most; the end of the context ends it sooner.
        temperature: Of the sampled tokens; 0 takes the likeliest.
        top_p: Tokens are sampled of the likeliest that make up this probability.
        seed: Of the sampled tokens.
        json: Print JSON when all is written.
    """
    from gatito.talking import generate_text

    decoding = (temperature, top_p, seed)
    generate_text(checkpoint, image or [], text, ask, max_new_tokens, *decoding, as_json=json)


def chat(
    checkpoint: str, max_new_tokens: int = 64, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0
) -> None:
    """Talk with a checkpoint, images in the conversation.

    Args:
        checkpoint: Folder of a run or checkpoint, or `hf:owner/name` on the hub.
        max_new_tokens: Tokens of an answer at most.
        temperature: Of the sampled tokens; 0 takes the likeliest.
        top_p: Tokens are sampled of the likeliest that make up this probability.
        seed: Of the sampled tokens.
    """
    from gatito.talking import talk

    talk(checkpoint, max_new_tokens, temperature, top_p, seed)
