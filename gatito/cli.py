"""The command line: one parser, errors in one line with the nearest valid name, exit code 2."""

import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from gatito.errors import UserError
from gatito.live_verbs import chat, clone, generate, play, retrieve, serve
from gatito.parsing import Parser, normalised
from gatito.train.stop import Terminated
from gatito.verbs import (
    card,
    check,
    collect,
    compare,
    demo,
    describe,
    evaluate,
    export,
    import_,
    push,
    report,
    tasks,
    tokenizer,
    tokens,
)

EXPERIMENT = "Trains, evaluates, and writes a table, a picture and results.json; called again, it continues."

PLAYED = ("episodes", "expert_return", "sessions", "processes", "limit_s")
"""Settings of an evaluation that concern a baseline too."""


def build_parser(arguments: Sequence[str] = ()) -> Parser:
    """The parser of `gatito` with all its verbs; the defaults of some follow from the arguments."""
    from gatito import __version__
    from gatito.baselines.config import CloneConfig
    from gatito.data.engine import EngineName
    from gatito.data.mixture import MixtureConfig
    from gatito.eval.config import EvaluationConfig
    from gatito.play.config import PlayConfig
    from gatito.serve.config import ServeConfig
    from gatito.train.configs import Recipe

    def verb(function: Any, positional: str | None = None) -> Parser:
        parser = Parser(description=(function.__doc__ or "").split("\n")[0])
        if positional:
            several: dict[str, Any] = {"nargs": "+"} if positional == "sources" else {}
            parser.add_argument(positional, type=str, help=_help_of(function, positional), **several)
        parser.add_function_arguments(function, as_positional=False, skip={positional} if positional else None)
        return parser

    main = Parser(
        prog="gatito", description="One transformer for games, robots, images and text.", version=__version__
    )
    verbs = main.add_subcommands(dest="verb")
    verbs.add_subcommand("demo", verb(demo))
    verbs.add_subcommand("tasks", verb(tasks))
    verbs.add_subcommand("tokens", verb(tokens, "source"))
    info = Parser(
        description="Show what a recipe or checkpoint is made of and costs, and how many timesteps its context holds."
    )
    info.add_argument("source", type=str, help="recipe, YAML file, checkpoint, run, or `hf:owner/name` on the hub")
    info.add_argument("--config", action="config", help="what `source` names, where that is a recipe")
    info.add_class_arguments(Recipe, None)
    info.add_argument(
        "--data", type=str, help="store to count in; by default the one that the recipe names, if built"
    )
    info.add_argument("--gpus", type=int, default=1, help="GPUs that a recipe would train on")
    verbs.add_subcommand("info", info)

    data = Parser(description="Collect, check and describe datasets, and build tokenized stores of them.")
    verbs.add_subcommand("data", data)
    data_verbs = data.add_subcommands(dest="data_verb")
    data_verbs.add_subcommand("collect", verb(collect))
    data_verbs.add_subcommand("import", verb(import_, "source"))
    data_verbs.add_subcommand("export", verb(export, "source"))
    build = Parser(description="Tokenize a mixture of datasets into a store.")
    build.add_argument("--config", action="config", help="YAML file of the mixture")
    build.add_class_arguments(MixtureConfig, None)
    build.add_argument("--out", type=str, required=True, help="folder of the store")
    build.add_argument(
        "--engine", type=EngineName, default="local", help="where datasets are tokenized: here, or by Ray"
    )
    build.add_argument("--processes", type=int, default=2, help="CPUs of a Ray that is started on this machine")
    data_verbs.add_subcommand("build", build)
    data_verbs.add_subcommand("check", verb(check, "sources"))
    data_verbs.add_subcommand("info", verb(describe, "sources"))
    data_verbs.add_subcommand("report", verb(report, "source"))
    data_verbs.add_subcommand("card", verb(card, "source"))
    pieces = Parser(description=(tokenizer.__doc__ or "").split("\n")[0])
    pieces.add_argument("--from", type=str, nargs="+", required=True, help=_help_of(tokenizer, "sources"))
    pieces.add_function_arguments(tokenizer, as_positional=False, skip={"sources"})
    data_verbs.add_subcommand("tokenizer", pieces)

    train = Parser(description="Train a recipe on a store.")
    train.add_argument("--config", action="config", help="name of a recipe in the package, or a YAML file")
    train.add_class_arguments(Recipe, None)
    train.add_argument("--data", type=str, required=True, help="store that gatito data build wrote")
    train.add_argument("--out", type=str, required=True, help="folder of the run")
    train.add_argument(
        "--init", type=str, help="checkpoint, run, or `hf:owner/name` whose weights the run begins with, in its shape"
    )
    verbs.add_subcommand("train", train)

    evaluation = Parser(description=(evaluate.__doc__ or "").split("\n")[0])
    evaluation.add_argument("checkpoint", type=str, help=_help_of(evaluate, "checkpoint"))
    evaluation.add_function_arguments(evaluate, as_positional=False, skip={"checkpoint", "config"})
    evaluation.add_class_arguments(EvaluationConfig, None)
    evaluation.set_defaults({"processes": 2})  # a crash there does not end the evaluation
    verbs.add_subcommand("eval", evaluation)
    baseline = Parser(description="Play a baseline on the episodes that gatito eval plays.")
    verbs.add_subcommand("baseline", baseline)
    baselines = baseline.add_subcommands(dest="baseline_verb")
    unused = {f.name for f in fields(EvaluationConfig)} - {*PLAYED}
    for function in (retrieve, clone):
        own = Parser(description=(function.__doc__ or "").split("\n")[0])
        own.add_function_arguments(function, as_positional=False, skip={"config", "cloning"})
        if function is clone:
            own.add_class_arguments(CloneConfig, None)
        own.add_class_arguments(EvaluationConfig, None, skip=unused)
        own.set_defaults({"processes": 2})
        baselines.add_subcommand(function.__name__, own)
    experiment = Parser(description=EXPERIMENT)
    verbs.add_subcommand("experiment", experiment)
    experiments = experiment.add_subcommands(dest="name")
    for name, entry in _experiments(arguments).items():
        own = Parser(description=f"{entry.make.question} {EXPERIMENT}")
        own.add_argument("--config", action="config", help="YAML file of its settings")
        own.add_class_arguments(entry.settings, None)
        if "--full" in arguments:
            own.set_defaults(dict(entry.full))
        own.add_argument("--full", action="store_true", help="the full protocol instead of the short form")
        own.add_argument("--out", type=str, required=True, help="folder of the experiment; it is continued there")
        own.add_argument("--parallel", type=int, default=2, help="parts that are measured at a time")
        own.add_argument("--part", type=str, help="measure this part alone, as --parallel does")
        experiments.add_subcommand(name, own)
    verbs.add_subcommand("compare", verb(compare, "sources"))
    verbs.add_subcommand("push", verb(push, "checkpoint"))
    writing = Parser(description=(generate.__doc__ or "").split("\n")[0])
    writing.add_argument("checkpoint", type=str, help=_help_of(generate, "checkpoint"))
    writing.add_argument("--image", type=str, nargs="+", help=_help_of(generate, "image"))
    writing.add_function_arguments(generate, as_positional=False, skip={"checkpoint", "image"})
    verbs.add_subcommand("generate", writing)
    verbs.add_subcommand("chat", verb(chat, "checkpoint"))
    serving = Parser(description=(serve.__doc__ or "").split("\n")[0])
    serving.add_argument("checkpoint", type=str, nargs="?", help=_help_of(serve, "checkpoint"))
    serving.add_function_arguments(serve, as_positional=False, skip={"checkpoint", "config"})
    serving.add_class_arguments(ServeConfig, None)
    verbs.add_subcommand("serve", serving)
    playing = Parser(description=(play.__doc__ or "").split("\n")[0])
    playing.add_argument("checkpoint", type=str, help=_help_of(play, "checkpoint"))
    playing.add_class_arguments(PlayConfig, None)
    verbs.add_subcommand("play", playing)
    return main


def _experiments(arguments: Sequence[str]) -> Mapping[str, Any]:
    """The experiments by name, where one is typed: what they are made of takes its time to import."""
    if arguments[:1] != ["experiment"]:
        return {}
    from gatito.experiment.catalogue import EXPERIMENTS

    return EXPERIMENTS


def run(arguments: Sequence[str]) -> None:
    """Run one command line; raises `UserError` for bad input."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", "Image size")  # of Pillow: images.max_pixels is the limit, and names the file
    if {"--help", "-h"} & set(arguments):  # reading what stands under each field takes its time
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = build_parser(arguments)
    parser.words = [word for word in arguments if not word.startswith("-")][:2]
    values = parser.parse_args(normalised(arguments, parser))
    chosen = values[values.verb]
    if values.verb == "data":
        _run_data(parser, chosen)
    elif values.verb == "info":
        from gatito.commands import show_info
        from gatito.data.store import is_store
        from gatito.recipes import is_recipe

        typed = any(argument.partition("=")[0] == "--data" for argument in arguments)
        # A recipe may be looked at before the store that it names is built.
        data = chosen.data if typed or (chosen.data and is_store(chosen.data)) else None
        show_info(chosen.source, _recipe(parser, values) if is_recipe(chosen.source) else None, data, chosen.gpus)
    elif values.verb == "eval":
        from gatito.eval.config import EvaluationConfig

        names = {f.name for f in fields(EvaluationConfig)}
        typed = chosen.as_dict()
        config = EvaluationConfig(**{name: typed.pop(name) for name in names})
        evaluate(config=config, **typed)
    elif values.verb == "baseline":
        _run_baseline(chosen)
    elif values.verb == "serve":
        from gatito.serve.config import ServeConfig

        typed = chosen.as_dict()
        settings = ServeConfig(**{f.name: typed.pop(f.name) for f in fields(ServeConfig)})
        serve(config=settings, **typed)
    elif values.verb == "experiment":
        from gatito.experiment.command import run_named

        typed = chosen[chosen.name].as_dict()
        if typed["full"] and "--full" not in arguments:
            raise UserError("full is for the command line alone: --full")
        run_named(chosen.name, typed, arguments)
    elif values.verb == "play":
        from gatito.play.config import PlayConfig

        typed = chosen.as_dict()
        play(typed.pop("checkpoint"), PlayConfig(**typed))
    elif values.verb == "train":
        from accelerate import PartialState

        from gatito.train.trainer import train

        if chosen.init is not None:
            _check_shape_is_left(arguments)
        path = train(_recipe(parser, values), Path(chosen.data), Path(chosen.out), init=chosen.init)
        if PartialState().is_main_process:
            print(f"{path}\nnext: gatito eval {chosen.out} --out {chosen.out}/eval")
    else:
        functions: dict[str, Callable[..., None]] = {
            "demo": demo, "tasks": tasks, "tokens": tokens, "compare": compare, "push": push,
            "generate": generate, "chat": chat,
        }  # fmt: skip
        functions[values.verb](**chosen.as_dict())


def _check_shape_is_left(arguments: Sequence[str]) -> None:
    """Raise `UserError` for a shape that was typed beside --init, which has its own."""
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith("--model.") and name.replace("-", "_") != "__model.drop_path":
            raise UserError(f"{name} beside --init: a run has the shape of what it begins with; leave it out")


def _recipe(parser: ArgumentParser, values: Namespace) -> Any:
    """The recipe that a command line and its config file describe."""
    from gatito.train.configs import Recipe

    sections = [f.name for f in fields(Recipe)]
    for name in sections:
        if values[values.verb][name] is None:
            raise UserError(f"{name}: holds nothing, expected keys and values")
    chosen = parser.instantiate(values)[values.verb]
    return Recipe(**{name: chosen[name] for name in sections})


def _help_of(function: Any, parameter: str) -> str:
    """The line of a parameter in the docstring of a verb."""
    lines = (line.strip() for line in (function.__doc__ or "").splitlines())
    return next(line.removeprefix(f"{parameter}: ") for line in lines if line.startswith(f"{parameter}: "))


def _run_baseline(chosen: Namespace) -> None:
    from gatito.baselines.config import CloneConfig
    from gatito.eval.config import EvaluationConfig

    typed = chosen[chosen.baseline_verb].as_dict()
    config = EvaluationConfig(**{name: typed.pop(name) for name in PLAYED})
    if chosen.baseline_verb == "retrieve":
        retrieve(config=config, **typed)
        return
    cloning = CloneConfig(**{f.name: typed.pop(f.name) for f in fields(CloneConfig)})
    clone(config=config, cloning=cloning, **typed)


def _run_data(parser: ArgumentParser, chosen: Namespace) -> None:
    values = chosen[chosen.data_verb]
    if chosen.data_verb == "tokenizer":
        typed = values.as_dict()
        tokenizer(typed.pop("from"), **typed)
        return
    if chosen.data_verb != "build":
        functions: dict[str, Callable[..., None]] = {
            "collect": collect, "import": import_, "export": export, "check": check, "info": describe,
            "report": report, "card": card,
        }  # fmt: skip
        functions[chosen.data_verb](**values.as_dict())
        return
    from gatito.data.build import build as run_build
    from gatito.data.mixture import MixtureConfig
    from gatito.data_commands import describe_store

    made = parser.instantiate(Namespace(data=chosen)).data.build
    config = MixtureConfig(**{f.name: made[f.name] for f in fields(MixtureConfig)})
    describe_store(run_build(config, Path(made.out), engine=made.engine, processes=made.processes))


def main() -> None:
    """Entry point of the `gatito` command."""
    try:
        run(sys.argv[1:])
    except UserError as error:
        print(f"gatito: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `gatito tokens SOURCE | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno is None:
            raise
        print(f"gatito: {error.filename or 'writing failed'}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except Terminated as end:
        print(f"gatito: {end}", file=sys.stderr)
        sys.exit(143)
    except KeyboardInterrupt:
        print("gatito: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
