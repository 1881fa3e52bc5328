"""The environment of a release: a virtual environment with the wheel and what it needs, made in place, once."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from toolkit.errors import DeployError
from toolkit.ota import disk
from toolkit.ota.layout import Root
from toolkit.ota.receive import checked_blob
from toolkit.ota.release import Runtime
from toolkit.ota.service import last_line

PIP = ("-I", "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--no-cache-dir", "--quiet")
EXTRA = "[listen]"  # of the wheel: what records


def interpreter(root: Root, runtime: Runtime) -> Path:
    """Its Python."""
    return root.runtimes / runtime.key / "bin" / "python"


def make_runtime(root: Root, runtime: Runtime) -> Path:
    """Makes the runtime unless it is there, and gives its Python. DeployError with pip's last line if it fails.

    An environment cannot be renamed (its scripts hold its path), so the file ``ready`` takes the place of the rename:
    it is written when everything else is on the disk, and a folder without it is removed by the next command.
    """
    folder, python = root.runtimes / runtime.key, interpreter(root, runtime)
    if root.is_ready(runtime.key):
        return python
    wheels = _named_wheels(root, runtime)
    disk.remove(folder)
    site = ["--system-site-packages"] if runtime.system_site_packages else []
    _run(root, ["python3", "-I", "-m", "venv", *site, str(folder)], "a virtual environment cannot be made",
         "install python3 and python3-venv")
    source = ["--no-index", "--find-links", str(wheels)] if runtime.requirements else []
    _run(root, [str(python), *PIP, *source, f"{wheels / runtime.wheel}{EXTRA}"], f"{runtime.wheel} cannot be installed",
         "correct the wheels and run the command again")
    os.sync()  # pip syncs nothing of the thousands of files it writes
    disk.write_whole(folder / "ready", b"")
    disk.remove(wheels)
    return python


def _named_wheels(root: Root, runtime: Runtime) -> Path:
    """A folder in which the blobs have the names that pip understands."""
    folder = disk.new_name(root.path / "wheels")
    disk.remove(folder)
    disk.make_folder(folder)
    for name, digest in runtime.wheels.items():
        blob = checked_blob(root, digest, name)
        with disk.telling(folder):
            os.symlink(blob, folder / name)
    return folder


def _run(root: Root, command: list[str], problem: str, way_out: str) -> None:
    """The command holds our lock as well: if we are killed, nobody touches the folder while it still writes. It does
    not see our PYTHONPATH: where that is the wheel, pip would take the toolkit for installed already."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    lock = () if root.lock_descriptor is None else (root.lock_descriptor,)
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                              pass_fds=lock, cwd=root.path, env=environment)
    except OSError as error:
        raise DeployError(f"{problem} ({command[0]}: {error.strerror}); {way_out}.") from None
    if done.returncode:
        words = last_line(done.stderr) or last_line(done.stdout) or f"exit status {done.returncode}"
        raise DeployError(f"{problem} ({words}); {way_out}.")
