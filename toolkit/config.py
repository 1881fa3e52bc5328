"""Strict YAML into frozen dataclasses: the defaults, units, bounds and the words of every setting live in the class.

    @dataclass(frozen=True)
    class TrainSettings:
        epochs: int = setting(40, unit="epochs", doc="passes over the training set", low=1)

    recipe = load_config("kws.yaml", Recipe)  # or ConfigError: ... train.epohcs ...; did you mean train.epochs?

Field types: int, float, str, bool, Literal, X | None, tuple[X, ...], tuple[X, Y], dict[str, X], a union of scalars, and
nested dataclasses. A class may check several fields together in ``__post_init__`` by raising ConfigError (or
ValueError); the file and the path of the section are added here. Nothing is coerced but an integer into a float.

YAML is read as version 1.2 reads its scalars: ``1e-3`` is a number; ``yes``, ``no``, ``on`` and ``off`` are words (they
are keywords of the Speech Commands set, and version 1.1 would turn them into true and false). A key may stand once.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from toolkit.errors import ConfigError, MissingPartError

T = TypeVar("T")

MAX_CONFIG_BYTES = 1 << 20  # a recipe is a few kilobytes; anything near this is the wrong file
_SCALARS = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}
_CORE_SCALARS = (  # tag, pattern, first letters: YAML 1.2.2, 10.3.2, without octal numbers, which nobody means
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
)


def setting(
    default: Any = dataclasses.MISSING,
    *,
    unit: str = "",
    doc: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple | None = None,
    later: bool = False,
) -> Any:
    """A dataclass field with its unit, one line of documentation and inclusive bounds.

    ``low``, ``high`` and ``choices`` hold for the value, or for each element of a tuple or dict. Without ``default``
    the setting is required. ``later``: it came when digests of dumped documents were already kept; at its default it
    is left out of a dump, so that they hold.
    """
    metadata = {"unit": unit, "doc": doc, "low": low, "high": high, "choices": choices, "later": later}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def load_config(path: str | Path, cls: type[T]) -> T:
    """Read the YAML file ``path`` into the dataclass ``cls``. Raises ConfigError; MissingPartError without PyYAML."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path} is longer than {MAX_CONFIG_BYTES} bytes: this is not a settings file")
    return parse_config(_parse_yaml(text, str(path)), cls, str(path))


def parse_config(mapping: Any, cls: type[T], source: str) -> T:
    """Build ``cls`` from nested plain mappings; ``source`` names their origin in errors. Raises ConfigError."""
    return _Reader(source, cls).section(mapping, cls, "")


def dump_config(config: Any) -> str:
    """The complete resolved configuration as YAML, fields in order; ``load_config`` reads the same values back.

    Fields that came ``later`` (setting) are left out at their default.
    """
    yaml = _yaml()
    style = {"sort_keys": False, "default_flow_style": None, "allow_unicode": True, "width": 110}
    return yaml.dump(_plain(config), Dumper=_careful_dumper(yaml), **style)


class _Reader:
    """Checks one document; holds what every error names: the source and the whole tree of known settings."""

    def __init__(self, source: str, root: type):
        self.source = source
        self.known = tuple(_setting_paths(root))

    def section(self, mapping: Any, cls: type, path: str) -> Any:
        if not isinstance(mapping, dict):
            raise self.wrong(path, mapping, f"a section with the keys {', '.join(_fields(cls))}")
        fields, values = _fields(cls), {}
        for key, value in mapping.items():
            if key not in fields:
                raise self.unknown(path, key, value, fields)
            field, kind = fields[key]
            values[key] = self.value(value, kind, _join(path, key), field.metadata)
        for name, (field, kind) in fields.items():
            if name not in values and field.default is field.default_factory is dataclasses.MISSING:
                doc = field.metadata.get("doc", "")
                raise ConfigError(
                    f"{self.source}: {_join(path, name)} is missing: expected "
                    f"{_expected(kind, field.metadata)}{f' ({doc})' if doc else ''}"
                )
        try:
            return cls(**values)
        except (ConfigError, ValueError) as error:
            said = str(error)  # a class may name its own path, as FeatureConfig does
            where = "" if not path or said.startswith(path + ".") else path + ": "
            raise ConfigError(f"{self.source}: {where}{said}") from None

    def value(self, value: Any, kind: Any, path: str, metadata: Any) -> Any:
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        expected = _expected(kind, metadata)
        if dataclasses.is_dataclass(kind):
            return self.section(value, kind, path)
        if origin in (typing.Union, types.UnionType):
            if value is None and type(None) in arguments:
                return None
            for option in arguments:
                if option is type(value) or typing.get_origin(option) is not None or option is float:
                    try:
                        return self.value(value, option, path, metadata)
                    except ConfigError:
                        continue
            raise self.wrong(path, value, expected)
        if origin is tuple:
            return self.sequence(value, arguments, path, metadata, expected)
        if origin is dict:
            if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
                raise self.wrong(path, value, expected)
            return {key: self.value(item, arguments[1], _join(path, key), metadata) for key, item in value.items()}
        if origin is typing.Literal:
            return self.choice(value, arguments, path)
        if kind not in _SCALARS:
            raise TypeError(f"{path}: config.py has no rule for a field of type {kind}")
        return self.scalar(value, kind, path, metadata, expected)

    def scalar(self, value: Any, kind: type, path: str, metadata: Any, expected: str) -> Any:
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or (kind is float and not math.isfinite(value)):
            raise self.wrong(path, value, expected)
        if metadata.get("choices"):
            return self.choice(value, metadata["choices"], path)
        low, high = metadata.get("low"), metadata.get("high")
        if kind in (int, float) and ((low is not None and value < low) or (high is not None and value > high)):
            raise self.wrong(path, value, expected)
        return value

    def sequence(self, value: Any, arguments: tuple, path: str, metadata: Any, expected: str) -> tuple:
        if not isinstance(value, (list, tuple)):
            raise self.wrong(path, value, expected)
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise self.wrong(path, value, expected)
        return tuple(
            self.value(item, kind, f"{path}[{i}]", metadata)
            for i, (item, kind) in enumerate(zip(value, kinds, strict=True))
        )

    def choice(self, value: Any, choices: tuple, path: str) -> Any:
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise self.wrong(path, value, "one of " + ", ".join(str(choice) for choice in choices) + hint)
        return value

    def wrong(self, path: str, value: Any, expected: str) -> ConfigError:
        return ConfigError(f"{self.source}: {path or 'the document'} is {_shown(value)}: expected {expected}")

    def unknown(self, path: str, key: Any, value: Any, fields: dict) -> ConfigError:
        near = difflib.get_close_matches(str(key), list(fields), 1, 0.6)
        elsewhere = [known for known in self.known if known.rpartition(".")[2] == key]
        if near or elsewhere:
            hint = f"did you mean {_join(path, near[0]) if near else elsewhere[0]}?"
        else:
            hint = f"expected one of {', '.join(fields)}"
        return ConfigError(
            f"{self.source}: {_join(path, str(key))} (value {_shown(value)}) is not a known setting; {hint}"
        )


def _fields(cls: type) -> dict[str, tuple[dataclasses.Field, Any]]:
    """Name -> (field, resolved type) of the settings of a dataclass, in their order."""
    hints = typing.get_type_hints(cls)
    return {field.name: (field, hints[field.name]) for field in dataclasses.fields(cls) if field.init}


def _setting_paths(cls: type, prefix: str = "") -> typing.Iterator[str]:
    """Dotted path of every setting under ``cls``."""
    for name, (_, kind) in _fields(cls).items():
        yield _join(prefix, name)
        if dataclasses.is_dataclass(kind):
            yield from _setting_paths(kind, _join(prefix, name))


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _shown(value: Any) -> str:
    """A value as an error shows it: short, and a text in quotes so that "3" and 3 differ."""
    if isinstance(value, dict):
        return "a section" if value else "an empty section"
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _expected(kind: Any, metadata: Any) -> str:
    """What a setting accepts, in words: type, bounds, unit."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return f"a section with the keys {', '.join(_fields(kind))}"
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if metadata.get("choices") and kind in _SCALARS:
        return "one of " + ", ".join(map(str, metadata["choices"]))
    if origin in (typing.Union, types.UnionType):
        return " or ".join("nothing" if option is type(None) else _expected(option, metadata) for option in arguments)
    if origin is dict:
        return f"a section of names, each with {_expected(arguments[1], metadata)}"
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"a list, each item {_expected(arguments[0], metadata)}"
        return f"a list of {len(arguments)}, each {_expected(arguments[0], metadata)}"
    text = _SCALARS.get(kind, str(kind))
    if kind in (int, float):
        low, high, unit = metadata.get("low"), metadata.get("high"), metadata.get("unit")
        bounds = {
            (True, True): f" from {low} to {high}",
            (True, False): f" of at least {low}",
            (False, True): f" of at most {high}",
            (False, False): "",
        }[low is not None, high is not None]
        text += bounds + (f" ({unit})" if unit else "")
    return text


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
        later = [field.name for field, now in fields if field.metadata.get("later") and now == field.default]
        return {field.name: _plain(now) for field, now in fields if field.name not in later}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _yaml():
    try:
        import yaml
    except ImportError:
        raise MissingPartError("recipes and profiles need PyYAML, which is not installed: pip install pyyaml") from None
    return yaml


def _parse_yaml(text: bytes, source: str) -> Any:
    yaml = _yaml()
    try:
        return yaml.load(text, Loader=_strict_loader(yaml))  # a SafeLoader: plain data only
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise ConfigError(f"{source}{where}: not the YAML that is expected here: {problem}") from None


def _strict_loader(yaml: Any) -> type:
    """SafeLoader with YAML 1.2's scalars and without silent loss: a repeated key is an error."""

    class StrictLoader(yaml.SafeLoader):
        yaml_implicit_resolvers: dict = {}

        def construct_mapping(self, node, deep=False):
            seen = set()
            for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                if key_node.tag == "tag:yaml.org,2002:merge":
                    continue
                key = self.construct_object(key_node, deep=True)
                if not isinstance(key, (str, int, float, bool)):
                    raise yaml.constructor.ConstructorError(None, None, "a key must be a name", key_node.start_mark)
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} stands twice in one section", key_node.start_mark
                    )
                seen.add(key)
            return super().construct_mapping(node, deep)

    for name, pattern, letters in _CORE_SCALARS:
        StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(rf"(?:{pattern})\Z"), letters)
    return StrictLoader


def _careful_dumper(yaml: Any) -> type:
    """SafeDumper that quotes every text which YAML 1.1 or 1.2 would read as something else."""

    class CarefulDumper(yaml.SafeDumper):
        pass

    for name, pattern, letters in _CORE_SCALARS:
        CarefulDumper.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(rf"(?:{pattern})\Z"), letters)
    return CarefulDumper
