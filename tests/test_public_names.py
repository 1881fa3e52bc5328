"""The tree of errors is what its docstring draws: names, parents, exit codes; and the names that others import."""

from __future__ import annotations

import inspect
import re

import pytest

from toolkit import errors, features


def drawn() -> dict[str, tuple[str | None, int]]:
    """Name -> (parent, exit code) as in the docstring; a line without an exit code has its parent's."""
    tree, path = {}, []
    for line in errors.__doc__.splitlines():
        found = re.match(r"    ([│ ]*(?:[├└]── )?)([A-Z]\w*Error)\s+(?:exit (\d))?", line)
        if found:
            depth = len(found[1]) // 4
            parent = path[depth - 1] if depth else None
            path[depth:] = [found[2]]
            tree[found[2]] = (parent, int(found[3]) if found[3] else tree[parent][1])
    return tree


def test_tree_is_as_drawn():
    defined = {name: cls for name, cls in vars(errors).items() if inspect.isclass(cls)}
    parents = {name: cls.__base__.__name__ if cls is not errors.EdgeAudioError else None
               for name, cls in defined.items()}
    assert {name: (parents[name], cls.exit_code) for name, cls in defined.items()} == drawn()


def test_the_drawing_is_read():
    assert drawn()["EdgeAudioError"] == (None, 1) and drawn()["UsageError"] == ("EdgeAudioError", 2)
    assert drawn()["UnsupportedError"] == ("BundleError", 1) and len(drawn()) >= 14


def test_every_error_is_one_family():
    for name in drawn():
        cls = getattr(errors, name)
        assert issubclass(cls, errors.EdgeAudioError) and len(cls.__mro__) == len(set(cls.__mro__))
        assert str(cls("the thing, the value.")) == "the thing, the value."
        assert cls.exit_code in (1, 2) and cls.__doc__.endswith(".")


def test_no_system_error_is_of_the_family():
    assert not issubclass(errors.EdgeAudioError, (ValueError, OSError, RuntimeError, ImportError))


@pytest.mark.parametrize("name", features.__all__)
def test_front_end_names_are_there(name):
    assert inspect.getdoc(getattr(features, name))
