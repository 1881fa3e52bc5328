"""What a search may change: settings of a recipe by path, with bounds or choices, and the bits of its numbers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from models.recipe import Recipe
from toolkit.config import parse_config, setting
from toolkit.errors import ConfigError

RANGE = {"low", "high", "step", "log"}
BITS = "bits"  # no setting of a recipe: one training is measured with any of them
SHIPPED, SHARED, WIDE = 8, 4, 16  # int8; with 16 values per kernel; with int16 activations


@dataclass(frozen=True)
class Space:
    """The file of --space."""

    space: dict[str, tuple[bool | int | float | str, ...] | dict[str, bool | int | float]] = setting(
        doc="path of a setting: a list of choices, or {low, high, step} with step or log: true left out at will; "
        "bits: a list of 8, 4, 16"
    )

    def __post_init__(self):
        if not self.space:
            raise ConfigError("space is empty: expected at least one path of a setting")
        for path, values in self.space.items():
            if path == BITS and not (isinstance(values, tuple) and values and all(map(_is_bits, values))):
                raise ConfigError(
                    f"space.bits is {values}: expected choices of {SHIPPED} (int8), {SHARED} (int8 whose kernels hold "
                    f"{2**SHARED} values each) and {WIDE} (int16 activations, to measure)"
                )
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


def _is_bits(value) -> bool:
    return type(value) is int and value in (SHIPPED, SHARED, WIDE)


def default_space(recipe: Recipe) -> dict:
    """Every whole number of model.parameters, from a quarter of it to itself. Raises ConfigError if there is none."""
    found = {}
    for name, value in recipe.model.parameters.items():
        if type(value) is int and value > 1:
            step = max(1, value // 8)
            low = value - (value - max(1, value // 4)) // step * step
            found[f"model.parameters.{name}"] = {"low": low, "high": value, "step": step}
    return Space(found).space


def recipe_and_bits(recipe: Recipe, values: dict) -> tuple[Recipe, int]:
    """What is tried with {path: value}. Raises ConfigError, for quantize.clusters too: a search does not train them."""
    values = dict(values)
    bits = values.pop(BITS, SHIPPED)
    recipe = changed(recipe, values)
    if recipe.quantize.clusters:
        raise ConfigError(
            f"quantize.clusters is {recipe.quantize.clusters}, which a search does not train: leave it out of recipe "
            f"and space, and name {BITS}: [{SHIPPED}, {SHARED}] there."
        )
    return recipe, bits


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
