"""The wheels: toolkit/ whole and nothing else, the same bytes wherever they are built, good for every Python 3 of the
platform that their names promise, and of use before anything is installed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from devices.wheels import ARCHITECTURES, CORE, SHIPPED, Architecture, build_environment, copy_shipped, require_tools
from toolkit.errors import MissingPartError

ROOT = Path(__file__).resolve().parents[1]
HERE = next((each for each in ARCHITECTURES.values() if each.machine == platform.machine()), None)
BUILT = ("__pycache__", ".so", ".new", "/.")  # in a checkout, by Python, make and the caches of tools


def build(*arguments: str, checkout: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
    """`python -m devices.wheels` in a checkout; variables of its environment beside this one's."""
    return subprocess.run([sys.executable, "-m", "devices.wheels", *arguments], cwd=checkout, text=True,
                          env={**os.environ, "PYTHONPATH": str(checkout), **variables}, capture_output=True)


def require_parts(architecture: Architecture | None) -> None:
    if architecture is None:
        pytest.skip(f"no wheels are made for {platform.machine()}")
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed")
    try:
        require_tools([architecture])
    except MissingPartError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict:
    """What the command says of this machine's wheel."""
    require_parts(HERE)
    done = build(HERE.name, "--into", str(tmp_path_factory.mktemp("dist")))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    return Path(built["wheel"])


def test_it_holds_all_of_the_toolkit_and_nothing_else(wheel):
    """Also what no list in pyproject.toml names yet: a new package, a new kind of data."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "toolkit").rglob("*") if path.is_file()]
    assert sorted(names) == sorted([CORE, *(name for name in files if not any(part in name for part in BUILT))])


def test_its_entries_carry_nothing_of_who_built_it(wheel, built):
    with zipfile.ZipFile(wheel) as archive:
        entries = archive.infolist()
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    modes = {entry.filename.split("/")[-1]: stat.S_IMODE(entry.external_attr >> 16) for entry in entries}
    assert (modes.pop("libea.so"), modes.pop("RECORD"), set(modes.values())) == (0o755, 0o664, {0o644})
    content = wheel.read_bytes()
    assert (built["sha256"], built["size_bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))


def test_it_has_the_same_bytes_from_another_place(built, tmp_path):
    """Another folder, modes, times, umask, time zone, language, compiler flags, a stale core, leavings of a build."""
    checkout = tmp_path / "a checkout of another name"
    for name in (*SHIPPED, "devices"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        checkout.mkdir(exist_ok=True)
        copy(ROOT / name, checkout / name)
    for path in checkout.rglob("*"):
        path.chmod(0o700)
        os.utime(path, (1, 1_000_000_000))
    (checkout / CORE).write_bytes(b"\x7fELF of yesterday")
    (checkout / "build/lib/toolkit").mkdir(parents=True)
    (checkout / "build/lib/toolkit/gone.py").write_text("")
    before = os.umask(0o077)
    try:
        done = build(HERE.name, checkout=checkout, TZ="Pacific/Chatham", LANG="C", LC_ALL="C", CC="false", CFLAGS="-g",
                     MAKEFLAGS="CORE_FLAGS=-g", PYTHONHASHSEED="7", DIST_EXTRA_CONFIG="missing.cfg")
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert Path(again["wheel"]).parent == Path("dist")  # where `make wheels` puts it
    assert [path.name for path in (checkout / "dist").iterdir()] == [Path(built["wheel"]).name]
    assert again["sha256"] == built["sha256"]


def test_nothing_that_was_built_in_the_checkout_gets_in(core, tmp_path):
    """Its core, above all, which make would take for new."""
    copy_shipped(tmp_path / "source")
    names = {path.relative_to(tmp_path / "source").as_posix() for path in (tmp_path / "source").rglob("*")}
    assert set(SHIPPED) <= names and not [name for name in names if any(part in name for part in BUILT)]


def test_source_date_epoch_is_the_time_of_its_entries(monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    fixed = build_environment(ARCHITECTURES["armv7"])["SOURCE_DATE_EPOCH"]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert (fixed, build_environment(ARCHITECTURES["armv7"])["SOURCE_DATE_EPOCH"]) == ("315532800", "1700000000")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_its_name_promises_what_the_core_needs(name, tmp_path):
    """Machine and oldest glibc, as binutils read them from the library; and no other library."""
    require_parts(ARCHITECTURES[name])
    done = build(name, "--into", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")  # no warning either
    (path,) = tmp_path.iterdir()
    tag = rf"py3-none-manylinux_2_(\d+)_{ARCHITECTURES[name].machine}"
    promise = re.fullmatch(rf"edge_audio_toolkit-[\d.]+-{tag}\.whl", path.name)
    assert promise, path.name
    zipfile.ZipFile(path).extract(CORE, tmp_path)
    read = ["readelf", "-hdVW", tmp_path / CORE]
    text = subprocess.run(read, check=True, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}).stdout
    machine = {"x86-64": "X86-64", "aarch64": "AArch64", "armv7": "ARM"}[name]
    assert re.search(r"Machine:.* (\S+)\n", text)[1] == machine
    assert "hard-float ABI" in text or name != "armv7"  # which manylinux on armv7l means
    assert re.findall(r"NEEDED.*\[(.+)\]", text) == ["libc.so.6"]
    versions = [int(minor) for minor in re.findall(r"Name: GLIBC_2\.(\d+)", text)]
    assert versions and max(17, *versions) == int(promise[1])


def test_it_installs_without_a_network_and_passes_its_selftest(wheel, tmp_path):
    """By pip, into an environment that has the toolkit from nowhere else; the libraries are the tests' own."""
    place = tmp_path / "venv"
    venv.create(place, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", place / "bin/python", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-q", "--no-index", "--no-deps", wheel], check=True, capture_output=True)
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_paths()["purelib"])  # after its own packages
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "EDGE_AUDIO"))}
    done = subprocess.run([place / "bin/edge-audio", "selftest", "kws"], cwd=tmp_path, env=environment,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["passed"], answer["backend"]) == (True, "native")
    where = subprocess.run([place / "bin/python", "-c", "import toolkit; print(toolkit.__file__)"], cwd=tmp_path,
                           env=environment, check=True, capture_output=True, text=True).stdout
    assert where.strip() == str(packages / "toolkit/__init__.py")


def test_as_a_zip_it_works_before_anything_is_installed(wheel, tmp_path):
    """`toolkit.ota` and all its modules, on a Python that has nothing but its standard library."""
    program = ("import importlib, importlib.util, pkgutil, toolkit.ota\n"
               "assert importlib.util.find_spec('numpy') is None, 'this Python has numpy'\n"
               "for module in pkgutil.iter_modules(toolkit.ota.__path__, 'toolkit.ota.'):\n"
               "    if not module.name.endswith('__main__'):\n"
               "        importlib.import_module(module.name)\n"
               "print(toolkit.ota.__file__)")
    done = subprocess.run([sys.executable, "-S", "-c", program], cwd=tmp_path, capture_output=True, text=True,
                          env={"PYTHONPATH": str(wheel), "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{wheel}/toolkit/ota/__init__.py"


def test_a_missing_compiler_is_named_before_anything_is_built(tmp_path):
    if HERE is None:
        pytest.skip(f"no wheels are made for {platform.machine()}")
    for tool in ("make", "gcc"):
        (tmp_path / tool).write_text("#!/bin/sh\n")
        (tmp_path / tool).chmod(0o755)
    done = build("--into", str(tmp_path / "dist"), PATH=str(tmp_path))
    others = [each for each in ARCHITECTURES.values() if each is not HERE]
    assert (done.returncode, done.stdout, (tmp_path / "dist").exists()) == (1, "", False)
    assert done.stderr.count("\n") == 1 and "ARCH=" in done.stderr
    for each in others:
        assert f"{each.triplet}-gcc" in done.stderr and each.packages in done.stderr
    assert "libc6-dev " not in done.stderr  # gcc itself is there


def test_a_compiler_for_another_machine_is_found_out(tmp_path):
    require_parts(HERE)
    other = next(each for each in ARCHITECTURES.values() if each is not HERE)
    impostor = tmp_path / other.compiler()
    impostor.write_text(f'#!/bin/sh\nexec {shutil.which("gcc")} "$@"\n')
    impostor.chmod(0o755)
    done = build(other.name, "--into", str(tmp_path / "dist"), PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (done.returncode, (tmp_path / "dist").exists()) == (1, False)
    assert f"for ELF machine {HERE.elf_machine}, expected {other.elf_machine} for edge_audio_toolkit-" in done.stderr


def test_a_build_that_fails_says_what_the_compiler_said(tmp_path):
    require_parts(HERE)
    broken = tmp_path / "gcc"
    broken.write_text("#!/bin/sh\necho 'no space left on device' >&2\nexit 1\n")
    broken.chmod(0o755)
    done = build(HERE.name, "--into", str(tmp_path / "dist"), PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (done.returncode, done.stdout, (tmp_path / "dist").exists()) == (1, "", False)
    said = done.stderr.splitlines()
    assert said[0] == "no space left on device" and "Traceback" not in done.stderr
    assert said[-1].startswith(f"wheels: the wheel for {HERE.name} is not built (status 1); gcc ")


def test_an_unknown_architecture_is_misuse():
    done = build("armv6")
    assert done.returncode == 2 and "armv6; there are x86-64, aarch64, armv7" in done.stderr
