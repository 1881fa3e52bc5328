"""Strict YAML into dataclasses: what is accepted, what each error says, and that a dump reads back the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.config import MAX_CONFIG_BYTES, dump_config, load_config, parse_config, setting
from toolkit.errors import ConfigError


@dataclass(frozen=True)
class Train:
    epochs: int = setting(40, unit="epochs", doc="passes", low=1, high=1000)
    rate: float = setting(1e-3, low=0, high=1)
    shuffle: bool = setting(True, doc="new order in each epoch")


@dataclass(frozen=True)
class Settings:
    name: str = setting(doc="name of the result")
    words: tuple[str, ...] = ("up",)
    gain_db: tuple[float, float] = setting((-6.0, 6.0), low=-60, high=40)
    window: Literal["hann", "hamming"] = "hann"
    size: int = setting(512, choices=(256, 512))
    floor: float | None = setting(None, low=0, high=1)
    parameters: dict[str, int | float | str | bool] = setting({"width": 64})
    train: Train = Train()

    def __post_init__(self):
        if self.gain_db[0] > self.gain_db[1]:
            raise ConfigError("gain_db runs downwards")


def read(tmp_path, text: str) -> Settings:
    path = tmp_path / "kws.yaml"
    path.write_text(text)
    return load_config(path, Settings)


def test_defaults_fill_what_the_file_leaves_out(tmp_path):
    assert read(tmp_path, "name: kws") == Settings("kws")


def test_every_type_is_read(tmp_path):
    got = read(
        tmp_path,
        "name: kws\nwords: [yes, no, on, off]\ngain_db: [-12, 1.5]\nwindow: hamming\nsize: 256\nfloor: 0.5\n"
        "parameters: {width: 32, dropout: 0.1, norm: batch, bias: false}\n"
        "train: {epochs: 3, rate: 1e-3, shuffle: false}\n",
    )
    assert got.words == ("yes", "no", "on", "off")  # booleans in YAML 1.1
    assert got.gain_db == (-12.0, 1.5) and all(type(value) is float for value in got.gain_db)
    assert (got.window, got.size, got.floor) == ("hamming", 256, 0.5)
    kinds = {key: type(value) for key, value in got.parameters.items()}
    assert kinds == {"width": int, "dropout": float, "norm": str, "bias": bool}
    assert got.train == Train(3, 0.001, False)


@pytest.mark.parametrize(
    "text, value", [("1e-3", 1e-3), ("1E3", 1e3), (".5", 0.5), ("5.", 5.0), ("2", 2.0), ("-0.0", 0.0)]
)
def test_numbers_as_people_write_them(text, value):
    @dataclass(frozen=True)
    class One:
        x: float = 0.0

    from toolkit.config import _parse_yaml

    assert parse_config(_parse_yaml(f"x: {text}".encode(), "t"), One, "t").x == value


@pytest.mark.parametrize(
    "text, message",
    [
        ("name: kws\ntrain: {epohcs: 3}", "train.epohcs (value 3) is not a known setting; did you mean train.epochs?"),
        ("name: kws\nepochs: 3", "epochs (value 3) is not a known setting; did you mean train.epochs?"),
        ("name: kws\nzzz: 3", "zzz (value 3) is not a known setting; expected one of name, words"),
        ("name: kws\ntrain: {epochs: ten}", "train.epochs is 'ten': expected an integer from 1 to 1000 (epochs)"),
        ("name: kws\ntrain: {epochs: 3.0}", "train.epochs is 3.0: expected an integer"),
        ("name: kws\ntrain: {epochs: true}", "train.epochs is true: expected an integer"),
        ("name: kws\ntrain: {epochs: 0}", "train.epochs is 0: expected an integer from 1 to 1000"),
        ("name: kws\ntrain: {epochs: 010}", "train.epochs is '010': expected an integer"),
        ("name: kws\ntrain: {rate: .nan}", "train.rate is nan: expected a number"),
        ("name: kws\ntrain: {rate: '0.1'}", "train.rate is '0.1': expected a number"),
        ("name: kws\ntrain: {shuffle: yes}", "train.shuffle is 'yes': expected true or false"),
        ("name: kws\ntrain: 3", "train is 3: expected a section with the keys epochs, rate, shuffle"),
        ("name: kws\ntrain:", "train is empty: expected a section"),
        ("name: 3", "name is 3: expected a text"),
        ("words: [a]", "name is missing: expected a text (name of the result)"),
        ("name: kws\nwords: up", "words is 'up': expected a list, each item a text"),
        ("name: kws\nwords: [a, 3]", "words[1] is 3: expected a text"),
        ("name: kws\ngain_db: [1]", "gain_db is [1]: expected a list of 2, each a number from -60 to 40"),
        ("name: kws\ngain_db: [-70, 0]", "gain_db[0] is -70.0: expected a number from -60 to 40"),
        ("name: kws\ngain_db: [3, 0]", "gain_db runs downwards"),
        ("name: kws\nwindow: haming", "window is 'haming': expected one of hann, hamming; did you mean hamming?"),
        ("name: kws\nsize: 300", "size is 300: expected one of 256, 512"),
        ("name: kws\nfloor: 2", "floor is 2: expected a number from 0 to 1 or nothing"),
        ("name: kws\nparameters: {a: [1]}", "parameters.a is [1]: expected"),
        ("name: kws\nname: again", "line 2, column 1: not the YAML that is expected here: the key 'name' stands twice"),
        ("name: kws\ntrain: {rate: 0.1, rate: 0.2}", "the key 'rate' stands twice"),
        ("name: [unclosed", "line 1"),
        ("? [a]\n: 3", "a key must be a name"),
        ("", "the document is empty: expected a section"),
        ("- a\n- b", "the document is ['a', 'b']: expected a section"),
        ("name: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("name: \0", "special characters are not allowed"),
    ],
)
def test_each_error_names_file_path_value_and_way_out(tmp_path, text, message):
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert str(tmp_path / "kws.yaml") in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_section_that_names_itself_is_not_named_twice():
    @dataclass(frozen=True)
    class Inner:
        x: int = 1

        def __post_init__(self):
            if self.x != 1:
                raise ConfigError(f"inner.x is {self.x}")

    @dataclass(frozen=True)
    class Outer:
        inner: Inner = Inner()

    Outer.__annotations__["inner"] = Inner  # local classes cannot be resolved by name
    with pytest.raises(ConfigError, match="^t: inner.x is 2$"):
        parse_config({"inner": {"x": 2}}, Outer, "t")


@pytest.mark.parametrize("make", ["missing", "folder", "long", "latin1"])
def test_files_that_are_no_settings(tmp_path, make):
    path = tmp_path / "kws.yaml"
    if make == "folder":
        path.mkdir()
    elif make == "long":
        path.write_bytes(b"#" * (MAX_CONFIG_BYTES + 1))
    elif make == "latin1":
        path.write_bytes("name: r\xfcck".encode("latin1"))
    with pytest.raises(ConfigError, match="kws.yaml"):
        load_config(path, Settings)


number = st.floats(-60, 40)
scalar = st.one_of(
    st.integers(-(2**40), 2**40), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.text()
)
configurations = st.builds(
    Settings,
    name=st.text(),
    words=st.lists(
        st.sampled_from(["yes", "no", "on", "1e3", "null", "0x10", "~", "up", "", "12:30", "2020-01-01"])
    ).map(tuple),
    gain_db=st.tuples(number, number).map(sorted).map(tuple),
    window=st.sampled_from(["hann", "hamming"]),
    size=st.sampled_from([256, 512]),
    floor=st.none() | st.floats(0, 1),
    parameters=st.dictionaries(st.text(), scalar),
    train=st.builds(Train, st.integers(1, 1000), st.floats(0, 1), st.booleans()),
)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(configurations)
def test_a_dump_reads_back_the_same(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("dump") / "resolved.yaml"
    path.write_bytes(dump_config(config).encode())
    again = load_config(path, Settings)
    assert again == config
    assert {key: type(value) for key, value in again.parameters.items()} == {
        key: type(value) for key, value in config.parameters.items()
    }


def test_a_dump_keeps_the_order_of_the_fields():
    keys = [line.split(":")[0] for line in dump_config(Settings("kws")).splitlines() if not line.startswith(" ")]
    assert keys == ["name", "words", "gain_db", "window", "size", "floor", "parameters", "train"]


@dataclass(frozen=True)
class Grown:
    name: str = setting()
    timbre: float = setting(0.0, later=True)


def test_a_later_setting_leaves_old_dumps_as_they_were(tmp_path):
    assert dump_config(Grown("kws")) == "{name: kws}\n"
    path = tmp_path / "grown.yaml"
    path.write_text(dump_config(Grown("kws", 6.0)))
    assert load_config(path, Grown) == Grown("kws", 6.0)
