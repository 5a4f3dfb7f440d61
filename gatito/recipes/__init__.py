"""Named runs, YAML files of `Recipe`; below `mixtures/` named mixtures, YAML files of `MixtureConfig`."""

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import yaml

from gatito.errors import UserError, nearest
from gatito.train.configs import ModelConfig, Recipe, TrainConfig


def recipe_names() -> list[str]:
    """Names of the recipes in the package."""
    return _names(files("gatito.recipes"))


def mixture_names() -> list[str]:
    """Names of the mixtures in the package."""
    return _names(files("gatito.recipes").joinpath("mixtures"))


def _names(folder: Traversable) -> list[str]:
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def check_yaml(path: Path) -> None:
    """Raise `UserError` where a file is no YAML mapping."""
    if not path.is_file():
        raise UserError(f"no file {path}; --config takes a YAML file")
    try:
        values = yaml.safe_load(path.read_text())
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        got = "nothing" if values is None else type(values).__name__
        raise UserError(f"{path}: holds {got}, expected keys and values")


def load_recipe(name: str) -> Recipe:
    """A recipe of the package, or of a YAML file that has both of its sections; its `data` is not read.

    Raises `UserError` for a file that is no recipe.
    """
    path = Path(recipe_path(name))
    values = yaml.safe_load(path.read_text())
    try:
        return Recipe(model=ModelConfig(**values["model"]), train=TrainConfig(**values["train"]))
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: no recipe ({error}); it needs `model` and `train` with settings of gatito train"
        ) from None


def is_recipe(name: str) -> bool:
    """Whether a name is that of a recipe in the package, or of a YAML file."""
    return name in recipe_names() or name.endswith((".yaml", ".yml"))


def recipe_path(name: str) -> str:
    """The file of a recipe: the name of one in the package, or the path itself."""
    return _path(name, recipe_names(), "recipe", files("gatito.recipes"))


def mixture_path(name: str) -> str:
    """The file of a mixture: the name of one in the package, or the path itself."""
    return _path(name, mixture_names(), "mixture", files("gatito.recipes").joinpath("mixtures"))


def _path(name: str, names: list[str], what: str, folder: Traversable) -> str:
    if name.endswith((".yaml", ".yml")) or Path(name).is_file():
        if not Path(name).is_file():
            raise UserError(f"no {what} file {name}; in the package: {', '.join(names)}")
        check_yaml(Path(name))
        return name
    if name not in names:
        raise UserError(nearest(name, names, what))
    return str(folder.joinpath(f"{name}.yaml"))
