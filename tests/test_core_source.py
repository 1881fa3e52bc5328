"""The C core needs nothing: three headers, no float, no library; it compiles without a warning; the build is fresh."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from toolkit import native, tables

CORE = Path(__file__).parents[1] / "toolkit" / "core"
SOURCES = sorted(CORE.glob("*.[ch]"))
C_FILES = sorted(CORE.glob("*.c"))
ALLOWED_HEADERS = {"stdint.h", "stddef.h", "string.h"}
FORBIDDEN = re.compile(
    r"\b(float|double|malloc|calloc|realloc|free|alloca|printf|fprintf|sprintf|puts|assert|abort|exit|goto|setjmp"
    r"|\w+f?_t\s+\w+\s*\[\s*n\w*\s*\]\s*;)\b|\b\d+\.\d*[fF]?\b|\b\d+[eE][-+]?\d+\b")
# what a compiler may call on its own: copies, 64-bit arithmetic of 32-bit machines, position-independent code
COMPILER_CALLS = re.compile(
    r"memcpy|memmove|memset|memcmp|__aeabi_\w+|__(u?div|u?mod|mul|ash[lr]|lshr|clz)[sd]i[23]"
    r"|_GLOBAL_OFFSET_TABLE_|ea_\w+")


def without_comments(source: str) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n]*|\"[^\"\n]*\"", " ", source, flags=re.DOTALL)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_includes_only_the_three_headers_and_its_own(path):
    source = re.sub(r"/\*.*?\*/", " ", path.read_text(encoding="ascii"), flags=re.DOTALL)
    includes = re.findall(r'^\s*#\s*include\s*(<[^>]+>|"[^"]+"|\w+)', source, re.MULTILINE)
    for name in includes:
        if name.startswith("<"):
            assert name[1:-1] in ALLOWED_HEADERS
        else:
            assert name.startswith('"') and (CORE / name[1:-1]).is_file()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_float_no_allocation_no_output(path):
    found = FORBIDDEN.search(without_comments(path.read_text(encoding="ascii")))
    assert not found, found[0]


@pytest.mark.parametrize("line, name", [
    ("static float x;", "float"), ("y = malloc(3);", "malloc"), ('printf("x");', "printf"), ("x = 1.5f;", "1.5f"),
    ("x = 1e3;", "1e3")])
def test_the_search_finds(line, name):
    assert FORBIDDEN.search(without_comments(f"/* fine */ {line}"))[0] == name


def test_there_is_a_header_per_source():
    assert C_FILES and all(path.with_suffix(".h").is_file() for path in C_FILES)


@pytest.fixture(scope="module", params=[[], ["-DEA_CHECK"]], ids=["release", "checked"])
def objects(request, compiler, tmp_path_factory) -> Path:
    """The objects as for a microcontroller; on x86-64 gcc adds to each clone of a loop a question to the processor."""
    folder = tmp_path_factory.mktemp("objects")
    flags = ["-std=c99", "-pedantic", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-fPIC",
             "-DEA_CLONES="]
    for path in C_FILES:
        done = subprocess.run([compiler, *flags, *request.param, "-c", str(path), "-o", str(folder / f"{path.stem}.o")],
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder


def symbols(folder: Path, *options: str) -> list[tuple[str, str]]:
    """(type letter, name) of the symbols in all objects of the folder."""
    if not shutil.which("nm"):
        pytest.skip("nm is not installed (Debian: binutils)")
    command = ["nm", *options, *map(str, sorted(folder.glob("*.o")))]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [tuple(line.split()[-2:]) for line in lines if len(line.split()) >= 2]


def test_calls_nothing_but_copies(objects):
    undefined = {name for _, name in symbols(objects, "-u")}
    assert "memcpy" in undefined
    assert {name for name in undefined if not COMPILER_CALLS.fullmatch(name)} == set()


def test_has_no_state_of_its_own(objects):
    """All state lives in the caller's memory: no variable of the program, only code (T, t) and constants (r, R)."""
    kinds = {kind for kind, _ in symbols(objects, "--defined-only")}
    assert "T" in kinds and kinds <= set("TtRr")


def test_exports_only_its_prefix(objects):
    assert all(name.startswith("ea_") for kind, name in symbols(objects, "--defined-only") if kind.isupper())


def test_constants_are_those_of_the_twin():
    header = (CORE / "ea_tables.h").read_text(encoding="ascii")
    constants = dict(re.findall(r"#define (EA_\w+) +(0x[0-9a-f]+|\d+)", header))
    assert {name: int(value, 0) for name, value in constants.items()} == {
        "EA_TABLES_MAGIC": tables.MAGIC, "EA_ALGORITHM": tables.ALGORITHM,
        "EA_TABLES_HEADER_WORDS": tables.HEADER_WORDS, "EA_LOG_SEGMENTS": tables.LOG_SEGMENTS}


def test_the_built_core_is_not_older_than_its_sources(core):
    if Path(core._name) != native.LIBRARY:
        pytest.skip(f"EDGE_AUDIO_CORE names another build, {core._name}")
    newest = max(SOURCES, key=lambda path: path.stat().st_mtime)
    assert native.LIBRARY.stat().st_mtime >= newest.stat().st_mtime, f"{newest.name} changed; run `make core`"
