"""A release beside the running one: every bundle is checked and has passed its self-test here before it has a name."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from toolkit.errors import DeployError, VerificationError
from toolkit.ota import disk
from toolkit.ota.layout import Root
from toolkit.ota.receive import checked_blob
from toolkit.ota.release import BundleEntry, Release, below
from toolkit.ota.runtime import interpreter
from toolkit.ota.service import last_line
from toolkit.signature import TRUST_VARIABLE

SELFTEST_S = 600.0
RESULT = ("bundle", "version", "sha256", "backend", "passed", "reason")


def stage(root: Root, release: Release, allow_older: bool, say: Callable[[str], None]) -> bool:
    """Makes releases/ID; False if it was there, and then it is checked again. DeployError or VerificationError."""
    check_floor(root, release, allow_older, say)
    if not root.is_ready(release.runtime.key):
        raise DeployError(f"{root.path}: the runtime {release.runtime.key} is not there; make it first (runtime).")
    write_boot(root)
    folder = root.releases / release.id
    if folder.exists():
        inspect(root, release, folder)
        return False
    write_release(root, release, disk.new_name(folder))
    inspect(root, release, disk.new_name(folder))
    disk.put_in_place(folder)
    return True


def check_floor(root: Root, release: Release, allow_older: bool, say: Callable[[str], None]) -> None:
    """Refuses versions below the floor. What is committed already may be staged again: it is no step back."""
    refused = below(release.versions, root.floor())
    if not refused or release.id == root.committed:
        return
    if not allow_older:
        raise DeployError(f"{'; '.join(refused)}, the lowest version that this device takes; deploy a newer one, "
                          f"or the older one on purpose (--allow-older).")
    say(f"{'; '.join(refused)}, the lowest version that this device takes; taken all the same (--allow-older).")


def write_release(root: Root, release: Release, folder: Path) -> None:
    """The contents of releases/ID. Bundles are copies: nothing that happens to a blob later reaches a release."""
    disk.make_folder(folder / "bundles")
    for bundle in release.bundles:
        blob = checked_blob(root, bundle.sha256, bundle.name)
        with disk.telling(blob):
            data = blob.read_bytes()
        disk.write(folder / "bundles" / f"{bundle.name}.eab", data)
    disk.write(folder / "release.json", release.to_bytes())
    with disk.telling(folder):
        os.symlink(f"../../runtimes/{release.runtime.key}", folder / "runtime")
        disk.sync(folder / "bundles")
        disk.sync(folder)


def inspect(root: Root, release: Release, folder: Path) -> None:
    """The very files that the service will load, looked at by the runtime that will load them, with the keys of ROOT.

    Signature, hashes, name, version and self-test of each, in the order of ``toolkit.bundle``; the SHA-256 it reports
    is of the bytes it has checked, so that nothing can be exchanged between the check and the comparison.
    """
    results = _selftests(root, release, folder / "bundles")
    if len(results) != len(release.bundles):
        raise DeployError(f"{len(results)} of {len(release.bundles)} bundles were inspected; stage the release again.")
    for bundle, result in zip(release.bundles, results):
        _match(bundle, result)
        if not result["passed"]:
            raise VerificationError(f"{bundle.name} {bundle.version} fails its self-test on this device: "
                                    f"{result['reason']}.")
        if result["backend"] != "native":
            raise DeployError(f"{release.runtime.wheel}: has no C core for this device; build the wheel for it.")


def _match(bundle: BundleEntry, result: dict[str, Any]) -> None:
    found = BundleEntry(result["bundle"], result["version"], result["sha256"])
    if found != bundle:
        raise DeployError(f"{bundle.name}: the file is {found.name} {found.version} ({found.sha256[:16]}), but "
                          f"release.json says {bundle.name} {bundle.version} ({bundle.sha256[:16]}); plan it again.")


def _selftests(root: Root, release: Release, folder: Path) -> list[dict[str, Any]]:
    """What ``edge-audio selftest --signature require`` of the release's runtime says, in the order of the bundles."""
    command = [str(interpreter(root, release.runtime)), "-I", "-m", "toolkit", "selftest", "--signature", "require",
               *(f"./{bundle.name}.eab" for bundle in release.bundles)]
    try:
        done = subprocess.run(command, cwd=folder, env={**os.environ, TRUST_VARIABLE: str(root.trust)},
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                              timeout=SELFTEST_S)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        results = [{key: line[key] for key in RESULT} for line in lines]
    except subprocess.TimeoutExpired:
        raise VerificationError(f"the self-tests took longer than {SELFTEST_S:g} s; this device is too slow.") from None
    except OSError as error:
        raise DeployError(f"{command[0]}: cannot be run ({error.strerror}); make the runtime again.") from None
    except (ValueError, KeyError, TypeError):
        results = []
    if done.returncode and all(result["passed"] for result in results):  # it ended before it could say which
        words = last_line(done.stderr).removeprefix("edge-audio: ") or f"exit status {done.returncode}"
        raise DeployError(f"the release is refused: {words}.")
    return results


def write_boot(root: Root) -> None:
    """ROOT/boot, from this package, which may be a zip."""
    script = files("toolkit.ota").joinpath("boot").read_bytes()
    if not root.boot.exists() or root.boot.read_bytes() != script:
        disk.write_whole(root.boot, script, mode=0o755)
