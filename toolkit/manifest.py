"""The manifest of a bundle: what it is, what it needs, what was measured on it, and the hash of every member.

The schema is the dataclasses below; the last, ``Manifest``, is ``manifest.json``. Field types carry their bounds
(``Annotated``), and ``decode`` holds any JSON value against them: an unknown or missing key, a wrong type, NaN or a
value out of bounds is refused with its place in the document. There is one right byte sequence for a manifest
(``canonical_json``), so that a signature over the bytes is one over the meaning. No field holds a date: the same
inputs give the same bundle.

(This file does without ``from __future__ import annotations``: ``decode`` reads the types of the fields as objects.)
"""

import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal

from toolkit.errors import BundleFormatError, UnsupportedError

SCHEMA = 2
RESERVED_FILES = ("manifest.json", "manifest.sig")
REQUIRED_ROLES = ("model", "tables", "selftest_input", "selftest_features", "card")
SCORES_ROLE = "selftest_scores/"  # + runtime: "selftest_scores/tflite-runtime-2.14"


@dataclass(frozen=True)
class Check:
    """A bound on a value, in the words of an error message: ``expected`` completes "is 7, expected ..."."""

    holds: Callable[[Any], bool]
    expected: str


def _between(low: float, high: float) -> Check:
    return Check(lambda value: low <= value <= high, f"a number from {low} to {high}")


def _matching(pattern: str, expected: str) -> Check:
    return Check(lambda text: re.fullmatch(pattern, text) is not None, expected)


def _printable(limit: int) -> Check:  # str.isprintable excludes control characters, direction marks and lone surrogates
    return Check(lambda text: 0 < len(text) <= limit and text.isprintable(), f"1 to {limit} printable characters")


def _of_length(low: int, high: int) -> Check:
    return Check(lambda items: low <= len(items) <= high, f"{low} to {high} items")


_unique = Check(lambda items: len(set(items)) == len(items), "no item twice")

Text = Annotated[str, _printable(500)]
Label = Annotated[str, _printable(64)]
TensorName = Annotated[str, _printable(200)]
Name = Annotated[str, _matching(r"[a-z0-9][a-z0-9_-]{0,47}", "1 to 48 of a-z, 0-9, _ and -, a letter or digit first")]
Version = Annotated[str, _matching(r"(0|[1-9][0-9]{0,5})(\.(0|[1-9][0-9]{0,5})){2}(-[0-9a-z.-]{1,20})?",
                                   "a version like 0.1.0")]
Runtime = Annotated[str, _matching(r"[a-z0-9][a-z0-9._-]{0,47}", "a runtime like tflite-runtime-2.14")]
Role = Annotated[str, _matching(rf"{'|'.join(REQUIRED_ROLES)}|{SCORES_ROLE}[a-z0-9][a-z0-9._-]{{0,47}}",
                                f"{', '.join(REQUIRED_ROLES)} or {SCORES_ROLE}RUNTIME")]
FileName = Annotated[str, _matching(r"[a-z0-9](?!.*\.\.)[a-z0-9._-]{0,63}", "a file name of a-z, 0-9, dot, _ and -"),
                     Check(lambda name: name not in RESERVED_FILES, f"other than {' and '.join(RESERVED_FILES)}")]
Sha256 = Annotated[str, _matching(r"[0-9a-f]{64}", "64 lower-case hex digits")]
Count = Annotated[int, _between(1, 2**31 - 1)]
CountOrZero = Annotated[int, _between(0, 2**31 - 1)]
Frames = Annotated[int, _between(1, 10_000)]  # some minutes: rings and flushes stay within a device's memory
FramesOrZero = Annotated[int, _between(0, 10_000)]
Int8 = Annotated[int, _between(-128, 127)]
Fraction = Annotated[float, _between(0.0, 1.0)]
Scale = Annotated[float, _between(1e-12, 1e6)]
Shape = Annotated[tuple[Annotated[int, _between(1, 2**20)], ...], _of_length(1, 6)]


@dataclass(frozen=True)
class Member:
    """One file of the bundle."""

    file: FileName
    sha256: Sha256
    size: CountOrZero  # bytes


@dataclass(frozen=True)
class FrontEnd:
    """The features the model was trained on; ``config`` is checked by ``features``, not here."""

    id: Sha256  # of algorithm version, config and tables: equal ids share one computation
    config: Annotated[Mapping[Name, int | float | str], _of_length(1, 64)]


@dataclass(frozen=True)
class Decision:
    """How scores become a decision; all times in output frames of the model."""

    window_frames: Frames  # scores are summed over this many, of a clip
    flush_frames: FramesOrZero  # of silence after a clip, until the receptive field has passed its end
    threshold: Fraction  # on the posterior of all keywords together: softmax of the mean scores of the window
    refractory_frames: FramesOrZero  # after a detection, no other for this long
    rule: Literal["peak"]  # of clips, see kws.py
    hold_frames: Frames = 1  # a keyword is reported when it has led, over the threshold, for this many
    stream_window_frames: Frames | None = None  # scores are summed over this many, of a stream; None: as of a clip

    @property
    def stream_window(self) -> int:
        """Frames over which the scores of a stream are summed."""
        return self.stream_window_frames or self.window_frames


@dataclass(frozen=True)
class Tensor:
    """An int8 tensor: real value = scale * (integer - zero_point)."""

    name: TensorName
    shape: Shape
    scale: Scale
    zero_point: Int8


@dataclass(frozen=True)
class State:
    """A ring buffer that goes round outside the graph: from ``output`` to ``input`` of the next step, in one scale."""

    input: TensorName
    output: TensorName
    shape: Shape
    scale: Scale
    zero_point: Int8  # also the value after reset


@dataclass(frozen=True)
class Requantize:
    """From the int16 of the front end to the model's int8 input: ``features.Requantization``, field by field."""

    multiplier: Annotated[int, _between(1, 2**31 - 1)]
    shift: Annotated[int, _between(1, 46)]
    zero_point: Int8


@dataclass(frozen=True)
class Model:
    """The step model: its tensors and what it costs."""

    frames_per_step: Count  # T of the input [1, T, n]
    input: Tensor
    output: Tensor
    states: Annotated[tuple[State, ...], _of_length(0, 256)]
    requantize: Requantize
    ops: Annotated[tuple[Text, ...], _of_length(1, 200), _unique]
    size_bytes: Count
    arena_bytes: Count | None  # of TFLite Micro; None: not measured
    macs_per_second: CountOrZero  # of audio


@dataclass(frozen=True)
class Accuracy:
    """One measured figure, with all that is needed to measure it again."""

    metric: Text
    value: float
    low: float  # interval at ``confidence``
    high: float
    confidence: Fraction
    data: Text  # data set and its version
    split: Text
    clips: CountOrZero
    seeds: tuple[CountOrZero, ...]  # of the trainings behind the figure
    rule: Text  # by which a clip was decided
    runtime: Text


@dataclass(frozen=True)
class DataLicence:
    """A data set the weights were made from."""

    name: Text
    licence: Text
    source: Text


@dataclass(frozen=True)
class CreatedFrom:
    """The inputs of the build."""

    recipe_sha256: Sha256
    weights_sha256: Sha256


@dataclass(frozen=True)
class Selftest:
    """What a device must reproduce before it goes live."""

    exact: Annotated[tuple[Runtime, ...], _of_length(1, 32), _unique]  # runtimes that give their scores bit for bit
    max_lsb: Annotated[int, _between(0, 255)]  # by which a score may differ in any other runtime


@dataclass(frozen=True)
class Manifest:
    """``manifest.json``, schema 2. (In schema 1 the threshold was on the best label's own posterior.)"""

    task: Literal["kws", "sed", "denoise"]
    name: Name
    version: Version
    front_end: FrontEnd
    labels: Annotated[tuple[Label, ...], _of_length(0, 1000), _unique]  # one per score; none for denoise
    tap: Literal["raw", "clean"]
    decision: Decision | None  # None for denoise
    model: Model
    accuracy: Annotated[tuple[Accuracy, ...], _of_length(0, 100)]
    data_licences: Annotated[tuple[DataLicence, ...], _of_length(0, 100)]
    tools: Annotated[Mapping[Text, Text], _of_length(0, 100)]
    created_from: CreatedFrom
    selftest: Selftest
    members: Annotated[Mapping[Role, Member], _of_length(0, 60)] = field(default_factory=dict)  # write_bundle fills it
    schema: Literal[2] = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """The manifest as JSON types."""
        return encode(self)

    def to_bytes(self) -> bytes:
        """``manifest.json``: the one right byte sequence."""
        return canonical_json(self.to_dict())

    @classmethod
    def from_dict(cls, value: Any, where: str = "manifest.json") -> "Manifest":
        """A checked manifest from JSON types; BundleFormatError or UnsupportedError, which begin with ``where``."""
        schema = value.get("schema") if isinstance(value, dict) else None
        if type(schema) is int and schema != SCHEMA:
            raise UnsupportedError(f"{where}: schema is {schema}, this version of edge-audio-toolkit reads schema "
                                   f"{SCHEMA}; install the version that the bundle was made for")
        manifest = decode(cls, value, where)
        _check_as_a_whole(manifest, where)
        return manifest

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The runtimes for which the bundle holds expected scores."""
        return tuple(sorted(role.removeprefix(SCORES_ROLE) for role in self.members if role.startswith(SCORES_ROLE)))


def parse_manifest(data: bytes, where: str = "manifest.json") -> Manifest:
    """The manifest in ``data``, which must be canonical; BundleFormatError or UnsupportedError otherwise."""
    try:
        value = json.loads(data.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise BundleFormatError(f"{where}: not JSON in ASCII ({error}); pack the bundle again") from None
    manifest = Manifest.from_dict(value, where)
    if manifest.to_bytes() != data:
        raise BundleFormatError(f"{where}: not in canonical form (sorted keys, none twice, no spaces, plain numbers); "
                                f"pack the bundle again")
    return manifest


def canonical_json(value: Any) -> bytes:
    """A JSON value in its one right form: keys sorted, ASCII, no space, newline at the end; ValueError for NaN."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return (text + "\n").encode("ascii")


def _check_as_a_whole(manifest: Manifest, where: str) -> None:
    """What no field can tell alone."""
    model, members, scored = manifest.model, manifest.members, manifest.task != "denoise"
    missing_roles = sorted(set(REQUIRED_ROLES) - set(members))
    missing_scores = sorted(set(manifest.selftest.exact) - set(manifest.runtimes))
    files = [member.file for member in members.values()]
    state_names = [name for state in model.states for name in (state.input, state.output)]
    figures = [figure for figure in manifest.accuracy if not figure.low <= figure.value <= figure.high]
    rules = (
        (not missing_roles, f"members lacks {', '.join(missing_roles)}"),
        (not missing_scores, f"members lacks the scores of {', '.join(missing_scores)}, which selftest.exact names"),
        (len(set(files)) == len(files), "members names a file twice"),
        (missing_roles or members["model"].size == model.size_bytes, "model.size_bytes is not the size of the model"),
        (scored == bool(manifest.labels), f"labels has {len(manifest.labels)} items with task {manifest.task}"),
        (scored == (manifest.decision is not None),
         f"decision must be {'an object' if scored else 'null'} with task {manifest.task}"),
        (not scored or model.output.shape[-1] == len(manifest.labels),
         f"model.output has {model.output.shape[-1]} scores for {len(manifest.labels)} labels"),
        (manifest.tap == "raw" or manifest.task == "kws", f"tap is clean, but {manifest.task} listens to raw only"),
        (model.input.shape[:2] == (1, model.frames_per_step),
         f"model.input has shape {list(model.input.shape)}, expected [1, {model.frames_per_step}, ...]"),
        (len(set(state_names)) == len(state_names), "model.states names a tensor twice"),
        (not figures, f"accuracy of {figures[0].metric!a} lies outside its own interval" if figures else ""),
    )
    for holds, complaint in rules:
        if not holds:
            raise BundleFormatError(f"{where}: {complaint}; pack the bundle again")


# --- dataclass <-> JSON types ---------------------------------------------------------------------

_WORDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number",
          types.NoneType: "null"}


def encode(value: Any) -> Any:
    """JSON types of a dataclass: dataclass and mapping -> dict, tuple -> list."""
    if is_dataclass(value):
        return {item.name: encode(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    return value


def decode(kind: Any, value: Any, where: str) -> Any:
    """The JSON value as ``kind``: a dataclass, tuple[X, ...], Mapping[K, X], Literal, union, int, float, str or None.

    Strict: no key more or less than the fields, no bool for a number, no infinity; a whole number is taken for a float.
    ``where`` is the place named in the BundleFormatError.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        result = decode(arguments[0], value, where)
        for check in arguments[1:]:
            if not check.holds(result):
                raise _unexpected(value, where, check.expected)
        return result
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in arguments):
            raise _unexpected(value, where, " or ".join(map(repr, arguments)))
        return value
    if origin in (typing.Union, types.UnionType):
        for choice in arguments:
            if type(value) is _json_type(choice):
                return decode(choice, value, where)
        raise _unexpected(value, where, " or ".join(_WORDS[_json_type(choice)] for choice in arguments))
    if kind is float and type(value) is int and abs(value) <= 2**53:
        value = float(value)
    if type(value) is not _json_type(kind) or (kind is float and not math.isfinite(value)):
        raise _unexpected(value, where, _WORDS[_json_type(kind)])
    if is_dataclass(kind):
        return _decode_fields(kind, value, where)
    if origin is tuple:
        return tuple(decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Mapping:
        return {decode(arguments[0], key, f"{where}: a key"): decode(arguments[1], item, _below(where, key))
                for key, item in value.items()}
    return value


def _decode_fields(kind: type, value: dict[str, Any], where: str) -> Any:
    names = [item.name for item in fields(kind)]
    for key in value:
        if key not in names:
            import difflib  # 1 ms and 0.3 MB for the way out alone

            nearest = difflib.get_close_matches(key, names, n=1) if isinstance(key, str) else []
            way_out = f"did you mean {nearest[0]}?" if nearest else f"the keys are {', '.join(names)}"
            raise BundleFormatError(f"{where}: unknown key {_short(key)}; {way_out}")
    for name in names:
        if name not in value:
            raise BundleFormatError(f"{where}: the key {name} is missing; the keys are {', '.join(names)}")
    return kind(**{item.name: decode(item.type, value[item.name], _below(where, item.name)) for item in fields(kind)})


def _json_type(kind: Any) -> type:
    """The Python type that ``json.loads`` gives for a ``kind``."""
    origin = typing.get_origin(kind)
    if origin is Annotated:
        return _json_type(typing.get_args(kind)[0])
    if is_dataclass(kind) or origin is Mapping:
        return dict
    return list if origin is tuple else kind


def _below(where: str, key: str) -> str:
    return f"{where}: {key}" if where.endswith(".json") else f"{where}.{key}"


def _unexpected(value: Any, where: str, expected: str) -> BundleFormatError:
    return BundleFormatError(f"{where} is {_short(value)}, expected {expected}")


def _short(value: Any) -> str:
    text = ascii(value)  # a bundle is a stranger's file: nothing in it may steer the terminal
    return text if len(text) <= 60 else text[:57] + "..."
