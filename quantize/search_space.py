"""What a search may change in a recipe: settings by path, with bounds or choices."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from models.recipe import Recipe
from toolkit.config import parse_config, setting
from toolkit.errors import ConfigError

RANGE = {"low", "high", "step", "log"}


@dataclass(frozen=True)
class Space:
    """The file of --space."""

    space: dict[str, tuple[bool | int | float | str, ...] | dict[str, bool | int | float]] = setting(
        doc="path of a setting: a list of choices, or {low, high, step} with step or log: true left out at will"
    )

    def __post_init__(self):
        if not self.space:
            raise ConfigError("space is empty: expected at least one path of a setting")
        for path, values in self.space.items():
            if not isinstance(values, dict):
                good = bool(values)
            else:
                good = {"low", "high"} <= set(values) <= RANGE and not {"step", "log"} <= set(values)
                good = good and values["low"] <= values["high"] and (values.get("step", 1) > 0)
                good = good and ("log" not in values or values["low"] > 0)
            if not good:
                raise ConfigError(
                    f"space.{path} is {values}: expected choices, or low and high with low <= high, and step above 0 "
                    "or log: true (then low above 0)"
                )


def default_space(recipe: Recipe) -> dict:
    """Every whole number of model.parameters, from a quarter of it to itself. Raises ConfigError if there is none."""
    found = {}
    for name, value in recipe.model.parameters.items():
        if type(value) is int and value > 1:
            step = max(1, value // 8)
            low = value - (value - max(1, value // 4)) // step * step
            found[f"model.parameters.{name}"] = {"low": low, "high": value, "step": step}
    return Space(found).space


def changed(recipe: Recipe, values: dict) -> Recipe:
    """The recipe with {path: value}. Raises ConfigError for a path or a value that it does not know."""
    document = dataclasses.asdict(recipe)
    for path, value in values.items():
        *sections, name = path.split(".")
        section = document
        for key in sections:
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                raise ConfigError(f"the search space names {path}, and {key} is no section of a recipe.")
        section[name] = value
    return parse_config(document, Recipe, "the search space")
