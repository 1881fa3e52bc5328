"""A device in a folder: real files and links, the real installer and `boot`, and a stand-in for systemd on PATH.

The stand-in does what the unit says: it runs ROOT/boot, then "starts" what `current` links to, that is, it writes the
status file that such a service would. The runtime's Python is a stand-in, too: it says of each bundle what it is, and
that it passes its self-test, for the contents of these bundles mean nothing. STRICT_RUNTIME loads them as the real one
does, signatures and all.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from bundle_factory import OWNER, make_bytes

from toolkit.ota.__main__ import main
from toolkit.ota.layout import Root
from toolkit.ota.release import Release, parse_release
from toolkit.signature import PrivateKey

CHECKOUT = Path(__file__).resolve().parents[1]
HEALTH_S = "0.6"

SYSTEMCTL = """#!{python} -IS
import json, os, subprocess, sys, time
side, root = {side!r}, {root!r}
verb, option, unit = sys.argv[1:]
assert option == "--no-block"
with open(side + "/systemctl.log", "a") as log:
    log.write(verb + "\\n")
if os.path.exists(side + "/status.json"):
    os.unlink(side + "/status.json")
if verb == "restart":
    if subprocess.run([root + "/boot"]).returncode:
        sys.exit("Job for " + unit + " failed because the control process exited with error code.")
    release = os.path.basename(os.path.realpath(root + "/current"))
    with open(side + "/services.json") as file:
        change = json.load(file).get(release, {{}})
    if "fails" in change:
        sys.exit(change["fails"])
    status = {{"schema": 1, "pid": os.getpid(), "release": release, "started": time.time(), "time": time.time(),
              "state": "listening", "microphone": "a microphone", "bundles": [], "blocks": 50, "dropped_blocks": 0,
              "lost_samples_estimate": 0, "block_ms": {{"p50": 1.0, "p99": 2.0, "max": 3.0}}, "block_deadline_ms": 20,
              "deaf_s": 0.0, "last_audio_age_s": 0.02, "detections": 0, "reopened": 0, "sentence": None}}
    with open(side + "/status.json", "w") as file:
        json.dump({{**status, **change}}, file)
"""

RUNTIME = """#!{python} -IS
import hashlib, json, sys
for path in sys.argv[7:]:
    with open(path, "rb") as file:
        data = file.read()
    manifest = json.loads(data[(start := data.index(b'{{"')):data.index(b"\\n", start)])
    print(json.dumps({{"bundle": manifest["name"], "version": manifest["version"], "backend": "native", "passed": True,
                      "sha256": hashlib.sha256(data).hexdigest(), "reason": None, **{changes!r}}}))
sys.exit({changes!r}.get("passed") is False)
"""

STRICT_RUNTIME = """#!{python}
import json, sys
sys.path.insert(0, {checkout!r})
assert sys.argv[1:6] == ["-I", "-m", "toolkit", "selftest", "--signature"], sys.argv
from toolkit.bundle import load_bundle
from toolkit.errors import EdgeAudioError
try:
    bundles = [load_bundle(path, sys.argv[6]) for path in sys.argv[7:]]
except EdgeAudioError as error:
    sys.exit("edge-audio: " + str(error))
for bundle in bundles:
    print(json.dumps({{"bundle": bundle.manifest.name, "version": bundle.manifest.version, "sha256": bundle.sha256,
                      "backend": "native", "passed": True, "reason": None}}))
"""


class Device:
    """The folder `root`; `status`, `stage`, ... run a command as the host does and give its JSON line."""

    def __init__(self, folder: Path, monkeypatch, capsys):
        self.side, self.monkeypatch, self.capsys = folder / "side", monkeypatch, capsys
        self.root = Root(folder / "root")
        self.side.mkdir()
        self.services: dict[str, dict[str, Any]] = {}  # by release: what its service does differently
        self.error = ""  # stderr of the last command
        self.write_program(self.side / "bin" / "systemctl", SYSTEMCTL, side=str(self.side), root=str(self.root.path))
        monkeypatch.setenv("PATH", f"{self.side / 'bin'}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("EDGE_AUDIO_STATUS", str(self.side / "status.json"))
        self.trust(OWNER)

    def trust(self, *keys: PrivateKey, revoked: str = "") -> None:
        self.root.trust.mkdir(parents=True, exist_ok=True)
        for path in self.root.trust.iterdir():
            path.unlink()
        for key in keys:
            (self.root.trust / f"{key.public_key().key_id}.pub").write_text(key.public_key().to_text())
        (self.root.trust / "revoked").write_text(revoked)

    @staticmethod
    def write_program(path: Path, text: str, **values: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(python=sys.executable, checkout=str(CHECKOUT), **values))
        path.chmod(0o755)

    # --- commands ---

    def run(self, *arguments: str, stdin: bytes = b"") -> tuple[int, dict[str, Any] | None]:
        """(exit status, the JSON line or None)"""
        (self.side / "services.json").write_text(json.dumps(self.services))
        (self.side / "stdin").write_bytes(stdin)
        self.capsys.readouterr()
        with open(self.side / "stdin", "rb") as file:
            self.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
            status = main([*arguments, "--root", str(self.root.path)])
        out, self.error = self.capsys.readouterr()
        lines = out.splitlines()
        assert len(lines) <= 1 and "Traceback" not in self.error
        return status, json.loads(lines[0]) if lines else None

    def must(self, *arguments: str, stdin: bytes = b"") -> dict[str, Any]:
        status, answer = self.run(*arguments, stdin=stdin)
        assert status == 0 and answer is not None, self.error
        return answer

    def refusal(self, *arguments: str, stdin: bytes = b"") -> str:
        """The sentence with which a command fails."""
        status, answer = self.run(*arguments, stdin=stdin)
        assert status == 1 and answer is None and self.error.count("\n") == 1, (status, answer, self.error)
        return self.error.removeprefix("edge-audio: ").removesuffix("\n")

    # --- releases ---

    def plan(self, *bundles: bytes, wheel: bytes = b"a wheel", **entry: str) -> Release:
        """A release of these bundles, whose bytes are sent, in a runtime that is made; ``entry``: of the first."""
        entries = []
        for data in bundles:
            manifest = json.loads(data[(start := data.index(b'{"')):data.index(b"\n", start)])  # it may be cut short
            entries.append({"name": manifest["name"], "version": manifest["version"], "sha256": self.send(data)})
        entries[0].update(entry)
        document = {"schema": 1, "bundles": sorted(entries, key=lambda entry: entry["name"]),
                    "runtime": {"wheel": "edge_audio_toolkit-0.1.0-py3-none-any.whl", "requirements": [],
                                "sha256": self.send(wheel), "system_site_packages": False},
                    "listen": {"device": None, "channel": 0, "threshold": None}}
        release = parse_release(json.dumps(document).encode())
        self.make_runtime(release)
        return release

    def kws(self, version: str, key: PrivateKey | None = OWNER, **changes: Any) -> Release:
        """A release of one bundle, not staged yet."""
        return self.plan(make_bytes(key, version=version, **changes))

    def send(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        if not (self.root.blobs / digest).exists():
            assert self.must("receive", digest, "--size", str(len(data)), stdin=data)["is_complete"]
        return digest

    def make_runtime(self, release: Release, text: str = RUNTIME, **changes: Any) -> None:
        """``changes`` of what its self-test says."""
        folder = self.root.runtimes / release.runtime.key
        self.write_program(folder / "bin" / "python", text, changes=changes)
        (folder / "ready").write_bytes(b"")

    def stage(self, release: Release, *options: str) -> str:
        return self.must("stage", *options, stdin=release.to_bytes())["release"]

    def install(self, version: str, **changes: Any) -> str:
        """Staged, tried and committed: its ID."""
        release_id = self.stage(self.kws(version, **changes))
        assert self.must("try", release_id, "--health-s", HEALTH_S)["committed"], self.error
        return release_id

    # --- what can be seen from outside ---

    def save(self) -> None:
        """What ``restore`` brings back."""
        shutil.copytree(self.root.path, self.side / "saved", symlinks=True)

    def restore(self) -> None:
        shutil.rmtree(self.root.path)
        shutil.copytree(self.side / "saved", self.root.path, symlinks=True)
        self.must("recover")

    @property
    def links(self) -> tuple[str | None, str | None, str | None]:
        """IDs of current, committed, previous."""
        return self.root.linked("current"), self.root.linked("committed"), self.root.linked("previous")

    @property
    def running(self) -> str | None:
        """The release that the service runs."""
        path = self.side / "status.json"
        return json.loads(path.read_bytes())["release"] if path.exists() else None

    @property
    def calls(self) -> list[str]:
        """The verbs systemctl was called with."""
        path = self.side / "systemctl.log"
        return path.read_text().split() if path.exists() else []

    def leftovers(self) -> list[str]:
        """Names of things half made, anywhere."""
        return sorted(path.name for path in self.root.path.rglob(".*"))
