"""The parser of the command line, and one sentence for whatever jsonargparse says of what was typed."""

import re
import traceback
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, get_origin

from jsonargparse import ArgumentParser

from gatito.errors import UserError, nearest

KINDS = {
    "int": "a whole number",
    "list": "a list, such as '[a, b]'",
    "dict": "keys and values, such as '{a: 1, b: 2}'",
}
"""Types in words."""


class Parser(ArgumentParser):
    """Raises `UserError` where jsonargparse would print its usage."""

    words: Sequence[str] = ()
    """The first words that were typed, among them the verb."""

    def __init__(self, **values: Any) -> None:
        """Options are not to be abbreviated."""
        super().__init__(allow_abbrev=False, **values)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise `UserError` with one sentence for a message of jsonargparse."""
        if type(ex) is KeyError:
            # jsonargparse trips over an unknown key of a nested verb (`data.build.dataset`) while wording it.
            *_, (frame, _) = traceback.walk_tb(ex.__traceback__)
            message = f"'{str(frame.f_locals.get('key', ex)).split('.', 2)[-1]}' is not accepted"
        raise UserError(_one_line(message, sorted({k for p in _all_parsers(self._verb()) for k in _keys(p)})))

    def _verb(self) -> ArgumentParser:
        """The parser of the verb that was typed, as far as it is known."""
        parser: ArgumentParser = self
        for word in self.words:
            parsers = {k: v for a in parser._actions for k, v in (getattr(a, "_name_parser_map", None) or {}).items()}
            parser = parsers.get(word, parser)
        return parser


def normalised(arguments: Sequence[str], parser: ArgumentParser) -> list[str]:
    """Options may be written with dashes or underscores and switches without a value; `--config NAME` names a
    recipe of the package."""
    switches, mappings = _options_of(parser, bool), _options_of(parser, dict)
    result: list[str] = []
    for i, argument in enumerate(arguments):
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            option, dot, key = name.partition(".")
            option = "--" + option[2:].replace("-", "_")
            argument = option + dot + (key if option in mappings else key.replace("-", "_")) + equals + value
            following = arguments[i + 1] if i + 1 < len(arguments) else "--"
            if argument in switches and following.lower() not in ("true", "false"):
                argument += "=true"
        if result and result[-1] == "--config":
            argument = _config_file(arguments[0], argument)
        elif argument.startswith("--config="):
            argument = "--config=" + _config_file(arguments[0], argument.removeprefix("--config="))
        result.append(argument)
    if len(arguments) > 1 and arguments[0] == "info":
        from gatito.recipes import is_recipe

        # Before what else was typed, which overrides it.
        result[2:2] = [f"--config={_config_file('train', arguments[1])}"] if is_recipe(arguments[1]) else []
    return result


def _config_file(verb: str, name: str) -> str:
    """The YAML file that `--config` names, or the file of a recipe or mixture of the package."""
    from gatito.recipes import check_yaml, mixture_path, recipe_path

    if verb == "experiment":
        check_yaml(Path(name))
        return name
    return recipe_path(name) if verb == "train" else mixture_path(name)


def _options_of(parser: ArgumentParser, kind: type) -> set[str]:
    """Options of a type, such as bool, or dict whatever is in it."""
    return {
        option
        for p in _all_parsers(parser)
        for action in p._actions
        if (hint := getattr(action, "_typehint", None)) is kind or get_origin(hint) is kind
        for option in action.option_strings
    }


def _all_parsers(parser: ArgumentParser) -> list[ArgumentParser]:
    found = [parser]
    for action in parser._actions:
        choices = getattr(action, "_name_parser_map", None)
        if choices:
            found.extend(p for child in choices.values() for p in _all_parsers(child))
    return found


def _keys(parser: ArgumentParser) -> list[str]:
    actions = [action for action in parser._actions if action.dest not in ("help", "config")]
    names = [o for action in actions for o in action.option_strings if o.startswith("--") and o[-1] != "+"]
    verbs = [name for action in actions for name in (getattr(action, "_name_parser_map", None) or {})]
    is_of_mixtures = any(a.dest == "datasets" and getattr(a, "_typehint", None) is not str for a in actions)
    return [*names, *verbs, *(_entry_keys() if is_of_mixtures else [])]


def _entry_keys() -> list[str]:
    """Keys of an entry of a mixture's `datasets`."""
    from gatito.data.mixture import DatasetConfig

    return [f.name for f in fields(DatasetConfig)]


def _one_line(message: str, valid: list[str]) -> str:
    """The gist of a jsonargparse message, with the nearest valid option, key or verb."""
    text = " ".join(message.split())
    match = re.search(r"[Uu]nrecognized arguments: (\S+)", text)
    if match:
        return nearest(match.group(1).partition("=")[0], valid, "option")
    match = re.search(r"does not accept option '([^']+)'", text) or re.search(r"'([^']+)' is not accepted", text)
    if match and match.group(1) in set(valid) & set(_entry_keys()):
        return f"key {match.group(1)!r} belongs in an entry of 'datasets:', beside its source"
    if match:
        return nearest(match.group(1), [v.removeprefix("--") for v in valid], "key")
    match = re.search(r'key "([^"]+)": Expected a typing.Literal\[(.*)\]. Got value: (.*)', text)
    if match:
        return nearest(match.group(3), re.findall(r"'([^']+)'", match.group(2)), f"value of {match.group(1)}")
    match = re.search(r'((?:[Pp]arser key "[^"]+": ?)+)Expected a (.*)\. Got value: (.*)', text)
    if match:
        keys = re.findall(r'key "([^"]+)"', match.group(1))
        wanted = match.group(2).removeprefix("<class '").removesuffix("'>")
        kind = "a finite number" if wanted.endswith("float") else KINDS.get(wanted, wanted)
        return f"{'.'.join(keys)} is {match.group(3)}, expected {kind}"
    match = re.search(r'key "([^"]+)": Does not validate against any .*\[(.*?)\].*Given value: (.*)', text)
    if match:
        kind = "a finite number" if "'float'" in match.group(2) else "a whole number"
        return f"{match.group(1)} is {match.group(3)}, expected {kind}"
    match = re.search(r"arguments are required: (.*)", text)
    if match:
        missing = [name.strip().rpartition(".")[2] for name in match.group(1).split(",")]
        named = [f"--{name.replace('_', '-')}" if f"--{name}" in valid else name.upper() for name in missing]
        return f"missing: {', '.join(named)}"
    if re.search(r'expected "[a-z_.]*verb" to be one of', text):
        return "a verb is missing; --help lists them"
    match = re.search(r"invalid choice: '([^']+)' \(choose from (.*)\)", text)
    if match:
        return nearest(match.group(1), re.findall(r"'([^']+)'", match.group(2)), "verb or choice")
    return re.sub(r'^[Pp]arser key "([^"]+)": ', r"\1: ", text)
