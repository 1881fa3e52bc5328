"""The card of a release: what was measured gives it again, byte for byte; what it says where there are no mistakes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

if importlib.util.find_spec("scipy") is None:
    pytest.skip("scipy is not installed (requirements-host.txt)", allow_module_level=True)

from models.recipe import load_recipe
from quantize.card import make_card
from toolkit.bundle import load_bundle

MODELS = Path(__file__).resolve().parents[1] / "models"


def card_of(name: str, **details) -> str:
    zoo = MODELS / "zoo" / name
    known, licences = (json.loads((zoo / file).read_text("utf-8")) for file in ("accuracy.json", "licences.json"))
    known["details"] |= details
    recipe = load_recipe(MODELS / "recipes" / f"{name}.yaml")
    return make_card(recipe, (zoo / "about.md").read_text("utf-8"), known, licences)


@pytest.mark.parametrize("name", sorted(path.name for path in (MODELS / "zoo").iterdir()))
def test_what_was_measured_gives_the_card_of_the_released_bundle(name):
    card = (MODELS / "zoo" / name / "card.md").read_text("utf-8")
    assert card_of(name) == card and card.encode() == load_bundle(name).members["card"]


def test_mistakes_are_told_and_so_is_that_there_are_none():
    some, none = card_of("kws", mistakes=[["go", "no", 9], ["up", "off", 1]]), card_of("kws", mistakes=[])
    assert "\n\nCommonest mistakes: go heard as no (9), up heard as off (1).\n\n" in some
    assert "\n\nNo clip of `report` is taken for another label.\n\n" in none and "mistakes" not in none
