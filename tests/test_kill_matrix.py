"""The kill matrix in small: a sample of all faults is survived; installers that are wrong are found out; the README's
table is of this code. All cases: `python tests/kill_matrix.py --full` (some minutes)."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from kill_device import Device
from kill_log import CHANGING, read_log
from kill_matrix import COLUMNS, FAULTS, MARKERS, OPERATIONS, POWER_CUT, README, Matrix, table, unavailable
from kill_replay import Disk, contents, write_tree
from released import released

EVERY = 17  # of the cases, per operation; coprime to the number of faults, so that all of them come
BY_NAME = {operation.name: operation for operation in OPERATIONS}

if reason := unavailable():
    pytest.skip(f"no fault can be injected: {reason}", allow_module_level=True)


@pytest.fixture(scope="module")
def device(tmp_path_factory, core):
    released()
    device = Device(tmp_path_factory.mktemp("kill"))
    yield device
    device.close()


@pytest.fixture(scope="module")
def matrix(device):
    return Matrix(device)


@pytest.mark.parametrize("name", BY_NAME)
def test_survives_a_sample_of_all_faults(matrix, name):
    cases = list(matrix.cases(BY_NAME[name], EVERY))
    assert len(cases) >= 2 and {case.fault for case in cases} >= {POWER_CUT}
    assert [case for case in cases if case.complaints] == []


def test_every_rename_of_a_commit_is_survived(matrix):
    """The few calls on which all depends, killed one after the other."""
    renames = [call for call in matrix.targets(BY_NAME["try, healthy"]) if call.name.startswith("rename")]
    assert len(renames) >= 3  # current, committed, previous
    cases = [matrix.inject(BY_NAME["try, healthy"], call, "SIGKILL") for call in renames]
    assert [case for case in cases if case.complaints] == []


# --- a harness that cannot fail proves nothing ------------------------------------------------------


@pytest.mark.parametrize("broken, name", [("no fsync", "stage"), ("no fsync of folders", "stage"),
                                          ("no fsync", "try, healthy"), ("no fsync", "receive")])
def test_an_installer_that_does_not_sync_is_found_out(device, broken, name):
    matrix, operation = Matrix(device, broken), BY_NAME[name]
    cuts = matrix.power_cuts(operation)[::-1]  # what is missing shows best at the end
    assert any(matrix.cut_power(operation, *cut).complaints for cut in cuts)


def test_an_installer_that_replaces_links_in_two_steps_is_found_out(device):
    matrix, operation = Matrix(device, "rename in two steps"), BY_NAME["try, healthy"]
    targets = [call for call in matrix.targets(operation) if call.name.startswith("rename")]
    assert any(matrix.inject(operation, call, "SIGKILL").complaints for call in targets)


def test_a_gate_that_is_always_open_is_found_out(device):
    with pytest.raises(RuntimeError, match="goes back ends with 0 without any fault"):
        Matrix(device, "the gate is always open").clean_run(BY_NAME["try, goes back"])


# --- the model of lost writes -----------------------------------------------------------------------


def lost_writes(folder: Path, program: str) -> set[tuple]:
    """What a power cut at any moment of the program may leave in the folder ``root``: (path, contents) of all files."""
    root = folder / "root"
    root.mkdir()
    (root / "file").write_bytes(b"old")
    disk = Disk(root)
    program = "import os\n" + textwrap.dedent(program).replace("ROOT", str(root))
    subprocess.run(["strace", "-f", "-y", "-xx", "-s", "9999", "-e", f"trace={','.join(CHANGING)}",
                    "-o", folder / "log", sys.executable, "-I", "-S", "-c", program], check=True)
    found = set()
    for call in read_log(folder / "log"):
        if call.inside(str(root)):
            disk.apply(call)
            found |= {files(tree) for _, tree in disk.after_power_cut()}
    assert contents(disk.now()) == contents(Disk(root).now())  # the model has understood every call
    write_tree(disk.now(), folder / "copy")
    assert contents(Disk(folder / "copy").now()) == contents(Disk(root).now())
    return found


def files(tree) -> tuple:
    return tuple(sorted((name, b"/" if kind == "folder" else data) for name, (kind, data) in contents(tree).items()))


SYNC = """
def sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
"""
REPLACE = """
with open("ROOT/new", "wb") as file:
    file.write(b"new")
{}
os.rename("ROOT/new", "ROOT/file")
{}
"""


def test_a_file_that_is_renamed_unsynced_may_be_empty(tmp_path):
    found = lost_writes(tmp_path, REPLACE.format("", ""))
    assert found == {(("file", b"old"),), (("file", b"old"), ("new", b"")), (("file", b"old"), ("new", b"\0\0\0")),
                     (("file", b""),), (("file", b"\0\0\0"),)}


def test_a_file_that_is_synced_and_renamed_is_old_or_new(tmp_path):
    found = lost_writes(tmp_path, SYNC + REPLACE.format("sync('ROOT/new')", ""))
    assert {dict(state)["file"] for state in found} == {b"old", b"new"}


def test_a_name_stays_after_fsync_of_its_folder_only(tmp_path):
    program = SYNC + REPLACE.format("sync('ROOT/new')", "sync('ROOT')") + "os.mkdir('ROOT/last')"
    found = lost_writes(tmp_path, program)
    assert {state for state in found if "last" in dict(state)} == {(("file", b"new"), ("last", b"/"))}
    assert (("file", b"new"),) in found


def test_truncation_links_and_folders(tmp_path):
    found = lost_writes(tmp_path, """
        os.link("ROOT/file", "ROOT/second")
        os.mkdir("ROOT/folder")
        os.symlink("../file", "ROOT/folder/link")
        os.rename("ROOT/second", "ROOT/folder/second")
        os.truncate("ROOT/file", 1)
        os.unlink("ROOT/file")
        os.sync()
        os.mkdir("ROOT/gone")
        os.rmdir("ROOT/gone")
    """)
    assert (("file", b"old"),) in found
    assert (("file", b"o"), ("folder", b"/"), ("folder/link", b"../file"), ("folder/second", b"o")) in found
    assert not any({"second", "folder/second"} <= dict(state).keys() for state in found)  # a rename is one thing


def test_a_log_that_is_not_understood_is_refused(tmp_path):
    (tmp_path / "log").write_text("rename(\n")
    with pytest.raises(ValueError, match="not understood"):
        read_log(tmp_path / "log")


# --- the table --------------------------------------------------------------------------------------


def test_the_table_of_the_readme_is_of_this_code(matrix):
    """Its cases are those that a clean run has now (a Python or a bundle may take some calls more), all survived."""
    text = README.read_text("utf-8")
    assert MARKERS[0] in text, "`python tests/kill_matrix.py --full --table` writes the table between its markers"
    shown = text.partition(MARKERS[0])[2].partition(MARKERS[1])[0].strip()
    rows = {cells[0]: cells[1:] for line in shown.splitlines()[2:] if (cells := re.split(r" *\| *", line.strip("| ")))}
    assert shown.splitlines()[:2] == table([]).splitlines()[:2]
    assert list(rows) == [*BY_NAME, "all"]
    for name, (*counts, survived) in rows.items():
        counts = list(map(int, counts))
        assert survived == f"{sum(counts)} of {sum(counts)}"
        if name != "all":
            calls = len(matrix.targets(BY_NAME[name]))
            assert counts[: len(FAULTS)] == [pytest.approx(calls, rel=0.1, abs=1)] * len(FAULTS), name
            cuts = len(matrix.power_cuts(BY_NAME[name]))
            assert counts[COLUMNS.index(POWER_CUT)] == pytest.approx(cuts, rel=0.1, abs=2), name
