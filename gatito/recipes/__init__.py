"""Named runs: YAML files of `Recipe`."""

from importlib.resources import files
from pathlib import Path

import yaml

from gatito.errors import UserError, nearest
from gatito.train.configs import ModelConfig, Recipe, TrainConfig


def recipe_names() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(p.name.removesuffix(".yaml") for p in files("gatito.recipes").iterdir() if p.name.endswith(".yaml"))


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
    """A recipe of the package, or of a YAML file that has both of its sections; its `data` is not read."""
    values = yaml.safe_load(Path(recipe_path(name)).read_text())
    return Recipe(model=ModelConfig(**values["model"]), train=TrainConfig(**values["train"]))


def is_recipe(name: str) -> bool:
    """Whether a name is that of a recipe in the package, or of a YAML file."""
    return name in recipe_names() or name.endswith((".yaml", ".yml"))


def recipe_path(name: str) -> str:
    """The file of a recipe: the name of one in the package, or the path itself."""
    if name.endswith((".yaml", ".yml")) or Path(name).is_file():
        if not Path(name).is_file():
            raise UserError(f"no recipe file {name}; recipes in the package: {', '.join(recipe_names())}")
        check_yaml(Path(name))
        return name
    if name not in recipe_names():
        raise UserError(nearest(name, recipe_names(), "recipe"))
    return str(files("gatito.recipes").joinpath(f"{name}.yaml"))
