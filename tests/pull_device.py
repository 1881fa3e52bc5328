"""A device that fetches its release: from a folder that is really published, behind a real web server on the loopback.

``Publisher`` publishes into a folder, ``Web`` serves it, and does all that a server should not when a test says so;
``Puller`` is the device of ota_device.py, with environments that are made in milliseconds.
"""

from __future__ import annotations

import json
import platform
import shutil
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bundle_factory import OWNER, make_bytes
from keyrings import A, B, keyring, signed
from ota_device import HEALTH_S, RUNTIME, Device

from devices.plan import Order, make_order
from devices.publish import make_publisher, publish
from toolkit.manifest import canonical_json
from toolkit.ota.trust import install_keyring
from toolkit.profile import DeviceProfile
from toolkit.signature import PrivateKey, sign

MACHINE = {"x86_64": "x86-64", "armv7l": "armv7"}.get(platform.machine(), "aarch64")
OTHER = "aarch64" if MACHINE == "x86-64" else "x86-64"
WHEEL = "edge_audio_toolkit-0.1.0-py3-none-any.whl"
SUCCESSOR = PrivateKey(bytes(range(2, 34)), "the owner's next key")
PYTHON3 = """#!/bin/sh
# `python3 -m venv FOLDER`; the environment's pip copies the wheel, and all else the other program does.
for folder; do :; done
mkdir -p "$folder/bin"
cat > "$folder/bin/python" <<END
#!/bin/sh
case "\\$*" in
*"-m pip"*) for wheel; do :; done; cat "\\${{wheel%'[listen]'}}" > "$folder/installed" ;;
*) exec {side}/runtime "\\$@" ;;
esac
END
chmod +x "$folder/bin/python"
"""


class Publisher:
    """Publishes kws of any version into ``published``; keys and wheel lie in ``folder``."""

    def __init__(self, folder: Path):
        self.folder, self.published = folder, folder / "published"
        folder.mkdir()
        (folder / WHEEL).write_bytes(b"a wheel " * 1000)

    def order(self, version: str, profile: str = "board", architecture: str = MACHINE, key: PrivateKey = OWNER,
              wheel: bool = True) -> Order:
        board = DeviceProfile(schema=1, name=profile, board="a board", architecture=architecture, runtime="native",
                              flash_bytes=10**6, ram_bytes=10**6, macs_per_second=10**8, hop_deadline_ms=10,
                              transport="ssh", audio_device="default")
        path = self.folder / f"{version}.eab"
        path.write_bytes(make_bytes(key, version=version))
        return make_order(board, [path], self.folder / WHEEL if wheel else None)

    def publish(self, version: str, key: PrivateKey = OWNER, trust: Path | None = None, again: bool = False,
                at_least: int = 1, channel: str = "stable", folder: Path | None = None, **order) -> dict:
        publisher = make_publisher(folder or self.published, key, trust, channel)
        return publish(publisher, self.order(version, **{"key": key} | order), again, at_least)

    def keyrings(self, *pairs: tuple[bytes, bytes]) -> Path:
        """A folder of keyrings, as `python -m devices keyring` keeps them."""
        folder = self.folder / "keyrings"
        for number, (data, signatures) in enumerate(pairs, 1):
            (folder / str(number)).mkdir(parents=True, exist_ok=True)
            (folder / str(number) / "keyring.json").write_bytes(data)
            (folder / str(number) / "keyring.sig").write_bytes(signatures)
        return folder

    def forge(self, key: PrivateKey | None = OWNER, **changes) -> None:
        """The published index with other fields, signed by ``key`` (None: not signed anew)."""
        data = canonical_json(json.loads((self.published / "index.json").read_bytes()) | changes)
        (self.published / "index.json").write_bytes(data)
        if key:
            (self.published / "index.sig").write_bytes(sign(data, key))

    @property
    def blobs(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.published / "blobs").iterdir()}


def rotation(*bundle_keys: tuple[PrivateKey, ...]) -> list[tuple[bytes, bytes]]:
    """Keyrings 1, 2, ... with these bundle keys; who is gone was revoked."""
    rings, gone, before = [], set(), set()
    for version, keys in enumerate(bundle_keys, 1):
        gone, before = gone | before - {*keys}, {*keys}
        rings.append(signed(keyring(version, root=(A, B), bundle=keys, revoked=tuple(gone), threshold=2), A, B))
    return rings


class Web(ThreadingHTTPServer):
    """Files of a folder, with ranges. ``moods``: part of a path -> what it does instead; ``asked``: (path, Range)."""

    daemon_threads = True

    def __init__(self, folder: Path, tls: ssl.SSLContext | None = None):
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder, self.moods, self.asked = folder, {}, []
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.server_port}"
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, request, address) -> None:
        """A device that has seen enough goes away."""

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Answer(BaseHTTPRequestHandler):
    """A mood is a word, or a function of this handler."""

    def do_GET(self) -> None:  # noqa: N802
        web, asked_range = self.server, self.headers.get("Range")
        web.asked.append((self.path, asked_range))
        mood = next((mood for part, mood in web.moods.items() if part in self.path), None)
        path = web.folder / self.path.lstrip("/")
        if callable(mood):
            mood(self)
        elif path.is_file():
            self.send_file(path.read_bytes(), asked_range if mood != "no ranges" else None, mood)
        else:
            self.send_error(404)

    def send_file(self, data: bytes, asked_range: str | None, mood: str | None) -> None:
        start = int(asked_range.removeprefix("bytes=").removesuffix("-")) if asked_range else 0
        self.send_response(206 if asked_range else 200)
        if asked_range:
            self.send_header("Content-Range", f"bytes {start + (mood == 'another range')}-{len(data) - 1}/{len(data)}")
        if mood != "endless":
            self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if mood == "cut":
            data = data[:start + max(1, (len(data) - start) // 2)]
        if mood == "other bytes":
            data = bytes(len(data))
        self.wfile.write(data[start:] + bytes(1 << 16 if mood == "endless" else 0))  # at once, or the end can be seen
        while mood == "endless":
            self.wfile.write(bytes(1 << 16))

    def log_message(self, *arguments) -> None:
        pass


class Puller(Device):
    """``update`` and ``refuses`` run `edge-audio update` with the URL of the web server."""

    def __init__(self, folder: Path, monkeypatch, capsys, url: str):
        folder.mkdir()
        super().__init__(folder, monkeypatch, capsys)
        self.url = url
        self.write_program(self.side / "bin" / "python3", PYTHON3, side=str(self.side))
        self.use(RUNTIME, changes={})

    def use(self, program: str, **values) -> None:
        """What the Python of every release does."""
        self.write_program(self.side / "runtime", program, **values)

    def update(self, *options: str, url: str | None = None) -> dict:
        return self.must("update", url or self.url, "--health-s", HEALTH_S, *options)

    def refuses(self, *words: str, url: str | None = None, status: int = 1, options: tuple[str, ...] = ()) -> str:
        """The last line says why, in one sentence; what runs and what is committed stays."""
        before = self.links, self.running
        result, answer = self.run("update", self.url if url is None else url, "--health-s", HEALTH_S, *options)
        assert (result, answer) == (status, None), (answer, self.error)
        sentence = self.error.splitlines()[-1].removeprefix("edge-audio: ")
        assert all(word in sentence for word in words), sentence
        assert (self.links, self.running) == before
        return sentence

    def memory(self, channel: str = "stable") -> dict:
        return json.loads(self.root.index_file.read_bytes())["channels"][channel]

    def follow(self, keyring: tuple[bytes, bytes]) -> None:
        """The device trusts this keyring."""
        shutil.rmtree(self.root.trust)
        install_keyring(self.root.path, *keyring)
