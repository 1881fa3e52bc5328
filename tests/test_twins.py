"""Two front ends, one set of integers: numpy against C over many configurations, signals and block sizes; the same
battery on builds of the core that check overflow, addresses and undefined behaviour; hostile tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import malformed_tables
import numpy as np
import pytest
import signals
import twins

pytest.importorskip("hypothesis")
from hypothesis import example, given, settings
from hypothesis import strategies as st

from toolkit import native
from toolkit.errors import UnsupportedError
from toolkit.features import FeatureConfig, FrontEnd, Requantization, make_tables, parse_tables

HERE = Path(__file__).parent
CORE = HERE.parent / "toolkit" / "core"
STRICT_C99 = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
BUILDS = {
    "checked": ["-O2", "-DEA_CHECK"],
    "optimized": ["-O3", "-march=native"],
    "sanitized": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "address sanitized": ["-O1", "-g", "-fsanitize=address"],
}


@pytest.fixture(scope="session")
def build(compiler, tmp_path_factory):
    """Function: name of a build -> path of the shared library, compiled once."""
    folder, built = tmp_path_factory.mktemp("core"), {}

    def make(name: str) -> Path:
        if name not in built:
            path = folder / f"{name.replace(' ', '_')}.so"
            command = [compiler, "-shared", "-fPIC", *STRICT_C99, *BUILDS[name], *map(str, sorted(CORE.glob("*.c")))]
            done = subprocess.run([*command, "-o", str(path)], capture_output=True, text=True)
            if "sanitized" in name and "cannot find" in done.stderr:
                pytest.skip(f"{compiler} has no sanitizers (Debian: libgcc-12-dev or libclang-rt-dev)")
            assert done.returncode == 0, done.stderr
            built[name] = path
        return built[name]

    return make


def run_with(library: Path, compiler: str, *arguments: str) -> dict:
    """What the program printed, run with this core."""
    environment = {**os.environ, "EDGE_AUDIO_CORE": str(library)}
    if "sanitized" in library.stem:
        name = "libasan.so" if "gcc" in version_of(compiler) else "libclang_rt.asan-x86_64.so"
        runtime = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        if not Path(runtime).is_absolute():
            pytest.skip(f"{compiler} names no address sanitizer library to preload")
        environment |= {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout)


def version_of(compiler: str) -> str:
    text = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.lower()
    return "clang" if "clang" in text else "gcc"


# --- the built core against numpy ---


@pytest.mark.parametrize("config", twins.CONFIGS.values(), ids=twins.CONFIGS.keys())
def test_same_integers(core, config):
    rng = np.random.Generator(np.random.PCG64(7))
    for samples in signals.battery(twins.length_for(config, 12)).values():
        assert twins.compare(config, samples, rng) == 12


@st.composite
def front_ends(draw) -> FeatureConfig:
    n_fft = 1 << draw(st.integers(4, 12))
    win_length = draw(st.integers(1, n_fft))
    rate = draw(st.sampled_from([8000, 16000, 22050, 44100, 48000]))
    fmin_hz, fmax_hz = sorted(draw(st.lists(st.floats(0, rate / 2), min_size=2, max_size=2, unique=True)))
    n_mels = draw(st.integers(2, 256))
    return FeatureConfig(
        rate, win_length, draw(st.integers((win_length + 7) // 8, win_length)), n_fft,
        window=draw(st.sampled_from(["hann", "hamming"])), pre_emphasis=draw(st.just(0.0) | st.floats(0, 0.9999)),
        n_mels=n_mels, fmin_hz=fmin_hz, fmax_hz=fmax_hz, spectrum=draw(st.sampled_from(["magnitude", "power"])),
        log_floor=10 ** draw(st.floats(-14.9, 2.9)), n_mfcc=draw(st.just(0) | st.integers(0, n_mels)),
        output_fraction_bits=draw(st.integers(0, 15)))


@settings(max_examples=150)
@given(config=front_ends(), name=st.sampled_from(sorted(signals.battery(1))), seed=st.integers(0, 2**32 - 1))
def test_same_integers_for_any_front_end(core, config, name, seed):
    rng = np.random.Generator(np.random.PCG64(seed))
    twins.compare(config, signals.battery(twins.length_for(config, 3))[name], rng)


@settings(max_examples=60)
@given(data=st.data(), config=st.sampled_from([twins.CONFIGS[name] for name in ("32", "128", "odd window", "default")]))
def test_same_integers_for_any_samples_in_any_blocks(core, data, config):
    extreme = st.sampled_from([-32768, -32767, -1, 0, 1, 32767])
    samples = np.array(data.draw(st.lists(extreme | st.integers(-32768, 32767), max_size=2000)), np.int16)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(samples)), max_size=20)))
    expected = FrontEnd(make_tables(config), "numpy")
    got = FrontEnd(make_tables(config), "native")
    for block in np.split(samples, cuts):
        assert np.array_equal(got.process(block), expected.process(block))


def test_same_integers_with_other_tables(core):
    """Front ends that run side by side do not share state, and each keeps its tables alive."""
    x = signals.speech(6000)
    configs = [twins.CONFIGS[name] for name in ("default", "mfcc", "magnitude", "pre-emphasis")]
    fronts = [FrontEnd(make_tables(config), "native") for config in configs]
    got = [[] for _ in configs]
    for block in np.split(x, range(160, 6000, 160)):
        for front_end, frames in zip(fronts, got, strict=True):
            frames.append(front_end.process(block))
    for config, frames in zip(configs, got, strict=True):
        assert np.array_equal(np.concatenate(frames), FrontEnd(make_tables(config), "numpy").process(x))


@settings(max_examples=200)
@given(st.integers(1, (1 << 31) - 1), st.integers(1, 46), st.integers(-128, 127))
def test_same_codes(core, multiplier, shift, zero_point):
    features = np.arange(-32768, 32768, 7).astype(np.int16)
    codes = native.requantize(features, multiplier, shift, zero_point)
    assert np.array_equal(codes, Requantization(multiplier, shift, zero_point).apply_numpy(features))


@pytest.mark.parametrize("multiplier, shift", [(0, 10), (-1, 10), (1, 0), (1, 47)])
def test_requantization_out_of_range_is_refused(core, multiplier, shift):
    with pytest.raises(UnsupportedError, match="requantization"):
        native.requantize(np.zeros(3, np.int16), multiplier, shift, 0)


@settings(max_examples=500)
@given(st.floats(2.0**-8, 2.0**15), st.integers(-128, 127), st.integers(0, 15))
@example(0.5 * (1 + 5e-11), 0, 0)  # the multiplier rounds up to 2**31
def test_every_step_makes_a_requantization_that_both_accept(core, step_in_features, zero_point, bits):
    requantization = Requantization.from_step(step_in_features * 2.0**-bits, zero_point, bits)
    assert 1 << 30 <= requantization.multiplier < 1 << 31
    features = np.arange(-32768, 32768, 101).astype(np.int16)
    assert np.array_equal(requantization.apply(features), requantization.apply_numpy(features))


def test_a_named_core_that_is_not_there_is_an_error(tmp_path):
    """EDGE_AUDIO_CORE=typo must not quietly mean "without C"; an empty one means the usual place."""
    program = "from toolkit import native; print(native.library() is not None)"
    results = {}
    for value in (str(tmp_path / "typo.so"), ""):
        done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "EDGE_AUDIO_CORE": value},
                              capture_output=True, text=True, cwd=HERE.parent)
        results[value] = (done.returncode, done.stdout.strip(), done.stderr.strip().split("\n")[-1])
    code, _, message = results[str(tmp_path / "typo.so")]
    assert code == 1 and "MissingPartError" in message and "typo.so" in message, results
    assert results[""][0] == 0, results


# --- other builds of the same sources ---


@pytest.mark.parametrize("name", ["checked", "optimized", "sanitized"])
def test_same_integers_in_every_build(build, compiler, name):
    library = build(name)
    report = run_with(library, compiler, str(HERE / "twins.py"))
    assert report["core"] == str(library) and report["frames_equal"] > 4000 and report["codes_equal"] > 1000000


def test_checked_build_stops_at_an_overflow(build):
    """The check can fail: twiddles longer than 1 overflow in the FFT, and that ends the process."""
    program = """if True:
        import sys; sys.path[:0] = sys.argv[1:3]
        import numpy as np, signals
        from toolkit.features import FeatureConfig, FrontEnd, make_tables, parse_tables
        tables = make_tables(FeatureConfig())
        blob, first, n = bytearray(tables.blob), 64 + 2 * 480, len(tables.fft_twiddle_q30)
        blob[first : first + 4 * n] = np.full(n, 2**31 - 1, "<i4").tobytes()
        FrontEnd(parse_tables(bytes(blob)), "native").process(signals.square(480, 16))
        print("ran")"""
    command = [sys.executable, "-c", program, str(HERE), str(HERE.parent)]
    for name, ran in (("optimized", True), ("checked", False)):
        environment = {**os.environ, "EDGE_AUDIO_CORE": str(build(name))}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert (done.stdout == "ran\n") == ran, done.stderr
        assert (done.returncode < 0) == (not ran), done.stderr


def test_numpy_and_c_accept_the_same_tables(core):
    """What one refuses, the other must not run: a bundle is usable or not, whatever the machine has."""
    rng = np.random.Generator(np.random.PCG64(11))
    accepted = 0
    for i in range(3000):
        blob = (malformed_tables.hostile_header if i % 2 else malformed_tables.hostile_body)(rng)
        try:
            parse_tables(blob)
            in_python = True
        except UnsupportedError:
            in_python = False
        in_c = malformed_tables.run(blob, np.zeros(300, np.int16))
        header = np.frombuffer(blob[: len(blob) // 4 * 4][:64], "<i4").tolist()
        assert in_python == in_c, f"numpy {in_python}, C {in_c}: {len(blob)} bytes, header {header}"
        accepted += in_c
    assert 1000 < accepted < 2900


@pytest.mark.parametrize("name, kind, n", [("sanitized", "header", 6000), ("address sanitized", "body", 1000)])
def test_hostile_tables_are_refused_or_run_inside_their_memory(build, compiler, name, kind, n):
    report = run_with(build(name), compiler, str(HERE / "malformed_tables.py"), kind, str(n))
    assert report["refused"] + report["ran"] == n
    assert report["ran"] > n / 20 and report["refused"] > n / 20, "the fuzz is not interesting"
