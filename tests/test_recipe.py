"""The recipe: the released one is valid, every setting is documented, and nonsense is refused with the way out."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

import pytest

from models.recipe import Recipe, load_recipe
from toolkit.config import dump_config, parse_config
from toolkit.errors import ConfigError
from toolkit.features import FeatureConfig

RECIPES = sorted((Path(__file__).parents[1] / "models" / "recipes").glob("*.yaml"))
SMALLEST = {"schema": 1, "name": "kws", "data": {"words": ["up", "down"]}}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_released_recipes_are_valid_and_resolve_to_themselves(path, tmp_path):
    recipe = load_recipe(path)
    resolved = tmp_path / "recipe.yaml"
    resolved.write_text(dump_config(recipe))
    assert load_recipe(resolved) == recipe
    assert recipe.name == path.stem
    assert all(isinstance(word, str) for word in recipe.data.words)


def test_there_is_a_released_recipe():
    assert "kws" in [path.stem for path in RECIPES]


def test_labels_follow_the_words():
    assert parse_config(SMALLEST, Recipe, "t").labels == ("up", "down", "unknown", "silence")


def test_released_front_end_is_the_shared_one():
    assert parse_config(SMALLEST, Recipe, "t").features == FeatureConfig()


def _sections(cls: type) -> typing.Iterator[type]:
    yield cls
    for kind in typing.get_type_hints(cls).values():
        if dataclasses.is_dataclass(kind) and kind is not FeatureConfig:
            yield from _sections(kind)


@pytest.mark.parametrize("cls", list(_sections(Recipe)), ids=lambda cls: cls.__name__)
def test_every_setting_has_a_line_of_documentation(cls):
    for field in dataclasses.fields(cls):
        if not dataclasses.is_dataclass(typing.get_type_hints(cls)[field.name]):
            assert field.metadata.get("doc"), f"{cls.__name__}.{field.name}"
            for suffix, unit in (("_hz", "Hz"), ("_ms", "ms"), ("_s", "s"), ("_bytes", "bytes"), ("_frames", "frames")):
                if field.name.endswith(suffix):
                    assert field.metadata["unit"] == unit, field.name


@pytest.mark.parametrize(
    "section, message",
    [
        ({"schema": 2}, "schema is 2: expected one of 1"),
        ({"name": "My Model"}, "name is 'My Model': expected small letters"),
        ({"data": {"words": []}}, "data: words is empty"),
        ({"data": {"words": ["up", "up"]}}, "data: words holds 'up' twice"),
        ({"data": {"words": ["unknown"]}}, "data: words holds 'unknown'"),
        ({"data": {"words": ["../up"]}}, "data: words holds '../up'"),
        ({"data": {"words": [True, False]}}, "data.words[0] is true: expected a text"),
        ({"augment": {"speed": [1.1, 0.9]}}, "augment: speed is [1.1, 0.9]: expected the lower bound first"),
        ({"augment": {"specaugment": {"time_mask": 3}}}, "did you mean augment.specaugment.time_masks?"),
        ({"learning_rate": 1}, "did you mean train.learning_rate?"),
        ({"features": {"n_fft": 500}}, "t: features.n_fft is 500"),
        ({"budget": {"accuracy_floor": 95}}, "budget.accuracy_floor is 95: expected a number from 0 to 1"),
    ],
)
def test_nonsense_is_refused(section, message):
    with pytest.raises(ConfigError) as error:
        parse_config({**SMALLEST, **section}, Recipe, "t")
    assert message in str(error.value)


def test_missing_words_say_what_is_expected():
    with pytest.raises(
        ConfigError, match=r"t: data.words is missing: expected a list, each item a text \(the keywords"
    ):
        parse_config({"schema": 1, "name": "kws", "data": {}}, Recipe, "t")
