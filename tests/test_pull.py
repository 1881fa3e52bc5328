"""A device fetches its release: from a published folder behind a real web server, which then does all it should not.

The device is that of ota_device.py; the folder is made by `python -m devices publish`; the server is on the loopback.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from bundle_factory import OWNER, STRANGER, make_bytes
from keyrings import A, B, contents, keyring, signed
from ota_device import CHECKOUT, HEALTH_S, RUNTIME, STRICT_RUNTIME, Device

from devices import publish as publishing
from devices.plan import make_order
from devices.publish import make_publisher, publish
from toolkit.__main__ import main as edge_audio
from toolkit.errors import DeployError, EdgeAudioError, SignatureError, UsageError
from toolkit.manifest import canonical_json
from toolkit.ota import fetch
from toolkit.ota.fetch import Source
from toolkit.ota.index import check_index, parse_index
from toolkit.ota.release import short_id
from toolkit.ota.trust import install_keyring, read_keyring
from toolkit.profile import DeviceProfile
from toolkit.signature import PrivateKey, TrustedKeys, sign

MACHINE = {"x86_64": "x86-64", "armv7l": "armv7"}.get(platform.machine(), "aarch64")
OTHER = "aarch64" if MACHINE == "x86-64" else "x86-64"
WHEEL = "edge_audio_toolkit-0.1.0-py3-none-any.whl"
SUCCESSOR = PrivateKey(bytes(range(2, 34)), "the owner's next key")
PYTHON3 = """#!/bin/sh
# A virtual environment and pip, in milliseconds; the Python of the environment is the other program.
for folder; do :; done
mkdir -p "$folder/bin"
cat > "$folder/bin/python" <<END
#!/bin/sh
case "\\$*" in *"-m pip"*) for wheel; do :; done; cat "\\$wheel" > "$folder/installed" ;; *) exec {side}/runtime "\\$@" ;; esac
END
chmod +x "$folder/bin/python"
"""


# --- the three: desk, server, device ---


class Desk:
    """Where releases are published, with keys and a wheel."""

    def __init__(self, folder: Path):
        self.folder, self.published = folder, folder / "published"
        folder.mkdir()
        (folder / WHEEL).write_bytes(b"a wheel " * 1000)

    def order(self, version: str, profile: str = "board", architecture: str = MACHINE, key: PrivateKey = OWNER,
              wheel: bool = True):
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
        index = json.loads((self.published / "index.json").read_bytes()) | changes
        data = canonical_json(index)
        (self.published / "index.json").write_bytes(data)
        if key:
            (self.published / "index.sig").write_bytes(sign(data, key))

    @property
    def blobs(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.published / "blobs").iterdir()}


class Server:
    """Files of a folder with ranges. ``moods``: part of a path -> what it does instead; ``asked``: (path, Range)."""

    def __init__(self, folder: Path):
        self.folder, self.moods, self.asked = folder, {}, []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked_range = self.headers.get("Range")
                server.asked.append((self.path, asked_range))
                mood = next((mood for part, mood in server.moods.items() if part in self.path), None)
                path = server.folder / self.path.lstrip("/")
                if callable(mood):
                    return mood(self)
                if not path.is_file():
                    return self.send_error(404)
                data, start = path.read_bytes(), 0
                if asked_range and mood != "no ranges":
                    start = int(asked_range.removeprefix("bytes=").removesuffix("-"))
                    self.send_response(206)
                    wrong = 1 if mood == "another range" else 0
                    self.send_header("Content-Range", f"bytes {start + wrong}-{len(data) - 1}/{len(data)}")
                else:
                    self.send_response(200)
                if mood != "endless":
                    self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                if mood == "cut":
                    data = data[:start + max(1, (len(data) - start) // 2)]
                self.wfile.write(data[start:] if mood != "other bytes" else bytes(len(data) - start))
                while mood == "endless":
                    self.wfile.write(bytes(1 << 16))

            def log_message(self, *arguments):
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, address):  # a device that has seen enough goes away
                pass

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def desk(tmp_path) -> Desk:
    return Desk(tmp_path / "desk")


@pytest.fixture
def server(desk, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(desk.published)
    yield server
    server.close()


class Puller(Device):
    """A device whose environments are made in milliseconds, and the command."""

    def __init__(self, folder: Path, monkeypatch, capsys, url: str):
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
        result, answer = self.run("update", self.url if url is None else url, "--health-s", HEALTH_S,
                                  *options)
        sentence = self.error.splitlines()[-1].removeprefix("edge-audio: ")
        assert (result, answer) == (status, None), (answer, self.error)
        assert all(word in sentence for word in words), sentence
        assert (self.links, self.running) == before
        return sentence

    def memory(self, channel: str = "stable") -> dict:
        return json.loads(self.root.index_file.read_bytes())["channels"][channel]

    def follow(self, *pairs: tuple[bytes, bytes]) -> None:
        """The device trusts these keyrings, one after the other."""
        shutil.rmtree(self.root.trust)
        for pair in pairs:
            install_keyring(self.root.path, *pair)


@pytest.fixture
def device(tmp_path, monkeypatch, capsys, server) -> Puller:
    folder = tmp_path / "device"
    folder.mkdir()
    return Puller(folder, monkeypatch, capsys, server.url)


# --- all is well ---


def test_from_nothing_to_the_newest(desk, device, server):
    told = desk.publish("0.1.0")
    assert (told["version"], told["is_new"], told["blobs"]) == (1, True, 2)
    answer = device.update()
    assert answer == {"channel": "stable", "index_version": 1, "profile": "board", "release": told["release"],
                      "committed": True, "is_noop": False, "received_bytes": told["bytes"], "missing_bytes": 0,
                      "skipped": None, "reason": None}
    assert device.links == (told["release"], told["release"], None) and device.running == told["release"]
    (runtime,) = device.root.runtimes.iterdir()
    assert (runtime / "installed").read_bytes() == (desk.folder / WHEEL).read_bytes()
    second = desk.publish("0.2.0")
    server.asked.clear()
    answer = device.update()
    assert answer["committed"] and answer["received_bytes"] == len((desk.folder / "0.2.0.eab").read_bytes())
    assert device.links == (second["release"], second["release"], told["release"]) and device.leftovers() == []
    assert len([path for path, _ in server.asked if "blobs" in path]) == 1  # a new model alone; the wheel is there
    assert device.must("status")["index"]["channels"]["stable"]["version"] == 2


def test_nothing_to_do(desk, device, server):
    desk.publish("0.1.0")
    release = device.update()["release"]
    before, calls = contents(device.root.path), device.calls
    server.asked.clear()
    answer = device.update()
    assert answer["is_noop"] is True and answer["release"] == release and answer["received_bytes"] == 0
    assert device.error == "" and device.calls == calls and contents(device.root.path) == before
    assert [path for path, _ in server.asked] == ["/index.sig", "/index.json"]


def test_a_dry_run_changes_nothing(desk, device):
    told = desk.publish("0.1.0")
    before = contents(device.root.path)
    answer = device.update("--dry-run")
    assert answer["is_noop"] is False and answer["missing_bytes"] == told["bytes"] and answer["committed"] is False
    assert f"would fetch {told['bytes']} bytes, and try kws 0.1.0" in device.error
    assert contents(device.root.path) == before and device.calls == []


def test_a_stick(desk, device, tmp_path):
    """file:// of a copy with a space in its name; and the command by its short name."""
    told = desk.publish("0.1.0")
    stick = tmp_path / "a stick"
    shutil.copytree(desk.published, stick)
    assert device.update(url=stick.as_uri())["release"] == told["release"]
    assert edge_audio(["update", stick.as_uri(), "--root", str(device.root.path)]) == 0
    assert json.loads(device.capsys.readouterr().out)["is_noop"] is True
    shutil.rmtree(stick / "blobs")
    desk.publish("0.2.0")
    for name in ("index.json", "index.sig"):
        shutil.copy(desk.published / name, stick)
    device.refuses("there is no such file", url=stick.as_uri())


def test_each_profile_gets_its_own(desk, device):
    mine = desk.publish("0.1.0")
    other = desk.publish("0.2.0", profile="other", architecture=OTHER)
    assert (other["version"], other["blobs"]) == (2, 3)  # one wheel serves both
    assert device.update()["release"] == mine["release"]  # the only one for this processor
    desk.publish("0.3.0", profile="second")
    assert device.update()["is_noop"] is True  # now there are two, but it knows which it had
    device.refuses("no profile 'other' for this machine", f"other ({OTHER})", options=("--profile", "other"))
    device.refuses("no profile 'another' for this machine", "board (", options=("--profile", "another"))
    device.root.index_file.unlink()
    device.refuses("2 profiles for this machine", "--profile")
    assert device.update("--profile", "second")["profile"] == "second"
    assert device.update()["profile"] == "second"


def test_a_release_that_a_host_brought_is_not_fetched(desk, device):
    first = device.install("0.1.0")
    told = desk.publish("0.1.0", wheel=True)
    assert told["release"] != first  # another wheel
    assert device.update()["release"] == told["release"]
    assert device.must("rollback", "--health-s", HEALTH_S)["release"] == first
    assert "brought back from it since" in device.update()["skipped"]
    assert device.links[1] == first  # the owner's word counts until something else is offered
    assert device.update("--retry")["committed"] is True


# --- trials ---


def test_what_fails_its_trial_is_not_tried_again(desk, device):
    desk.publish("0.1.0")
    good = device.update()["release"]
    bad = desk.publish("0.2.0")["release"]
    device.services[bad] = {"deaf_s": 9.0}
    status, answer = device.run("update", device.url, "--health-s", HEALTH_S)
    assert status == 1 and answer["committed"] is False and "a constant signal for 9.0 s" in answer["reason"]
    assert device.links[:2] == (good, good) and device.running == good
    calls = device.calls
    answer = device.update()
    assert answer["is_noop"] is True and "a constant signal for 9.0 s" in answer["skipped"]
    assert device.calls == calls and "--retry tries it again" in device.error
    desk.publish("0.2.0", profile="other", architecture=OTHER)  # a new index, but the same offer
    assert device.update()["index_version"] == 3 and device.calls == calls
    assert device.run("update", device.url, "--health-s", HEALTH_S, "--retry")[0] == 1 and device.calls != calls
    device.services = {}
    assert device.update()["skipped"]
    assert desk.publish("0.2.0", again=True)["is_new"] is True
    answer = device.update()
    assert answer["committed"] is True and answer["received_bytes"] == 0 and device.root.committed == bad


def test_a_release_that_crashes_the_device_is_given_up(desk, device, monkeypatch):
    """Each trial ends as at a power cut; the record that it began is on the disk by then."""
    desk.publish("0.1.0")
    good = device.update()["release"]
    desk.publish("0.2.0")

    class PowerCut(BaseException):
        pass

    def crash(*arguments):
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr("toolkit.ota.pull.try_release", crash)
        for attempt in (1, 2, 3):
            with pytest.raises(PowerCut):
                device.update()
            assert device.memory()["trial"]["attempts"] == attempt
        assert "3 times, and each trial was cut off" in device.update()["skipped"]
    assert device.root.committed == good
    assert device.update("--retry")["committed"] is True


def test_a_trial_that_was_stopped_may_be_repeated(desk, device, monkeypatch):
    """As by a shutdown: it says nothing of the release. The sentence is that of trial.py."""
    from toolkit.ota import trial

    desk.publish("0.1.0")

    def stopped(root, before, *arguments):
        import os
        import signal

        os.kill(os.getpid(), signal.SIGTERM)
        return arguments[-1]()

    with monkeypatch.context() as patch:
        patch.setattr(trial.health, "wait_until_healthy", stopped)
        assert device.run("update", device.url)[1]["reason"] == "the trial was stopped by SIGTERM."
    assert device.memory()["trial"] | {"attempts": 1, "is_over": False} == device.memory()["trial"]
    assert device.update()["committed"] is True and device.memory()["trial"]["is_over"] is True


def test_what_fails_its_self_test_is_not_even_tried(desk, device):
    desk.publish("0.1.0")
    device.use(RUNTIME, changes={"passed": False, "reason": "scores differ"})
    device.refuses("fails its self-test on this device: scores differ")
    assert device.calls == [] and device.root.staged() == []


def test_the_floor_holds_for_what_is_fetched(desk, device, server):
    device.install("0.5.0")
    desk.publish("0.4.0")
    server.asked.clear()
    device.refuses("kws 0.4.0 is below 0.5.0")
    assert not [path for path, _ in server.asked if "blobs" in path]


# --- attacks: the index ---


def test_an_index_that_is_not_signed(desk, device):
    desk.publish("0.1.0")
    desk.forge(key=None, version=2)
    device.refuses("index.json: altered after it was signed by the key")
    (desk.published / "index.sig").write_bytes(b"")
    device.refuses("index.sig is not a line ed25519-signature")
    (desk.published / "index.sig").unlink()
    device.refuses("index.sig: the server answers 404 Not Found")
    assert not device.root.index_file.exists()


def test_an_index_of_a_stranger(desk, device):
    desk.publish("0.1.0", key=STRANGER)
    device.refuses(f"signed by the key {STRANGER.public_key().key_id}, which is not among the 1 trusted")


def test_an_index_of_a_revoked_key(desk, device):
    desk.publish("0.1.0")
    device.trust(OWNER, SUCCESSOR, revoked=f"{OWNER.public_key().key_id} stolen on a train\n")
    device.refuses("which was revoked (stolen on a train)")


def test_a_device_that_trusts_nobody(desk, device):
    desk.publish("0.1.0")
    shutil.rmtree(device.root.trust)
    device.refuses("trusts nobody yet; deploy to this device over SSH first")


def test_a_bundle_manifest_is_no_index(desk, device):
    """The same keys sign both: neither can pass for the other."""
    from toolkit.bundle import walk

    desk.publish("0.1.0")
    entries = walk(make_bytes(OWNER), "")
    (desk.published / "index.json").write_bytes(entries["manifest.json"])
    (desk.published / "index.sig").write_bytes(entries["manifest.sig"])
    device.refuses("schema is 2")


def test_an_older_index(desk, device, tmp_path):
    desk.publish("0.1.0")
    shutil.copytree(desk.published, tmp_path / "old")
    desk.publish("0.2.0")
    release = device.update()["release"]
    shutil.rmtree(desk.published)
    shutil.copytree(tmp_path / "old", desk.published)
    device.refuses("version is 1, but 2 was taken already; an older index is never taken again")
    assert device.root.committed == release and device.memory()["version"] == 2


def test_two_indexes_of_one_version(desk, device, tmp_path):
    desk.publish("0.1.0")
    device.update()
    desk.publish("0.2.0", folder=tmp_path / "elsewhere")
    shutil.rmtree(desk.published)
    shutil.copytree(tmp_path / "elsewhere", desk.published)
    device.refuses("version 1 was taken already, and was another")
    shutil.rmtree(desk.published)
    desk.publish("0.2.0", at_least=2)  # how the owner goes on when his folder was lost
    assert device.update()["index_version"] == 2


def test_a_thief_cannot_lock_the_owner_out(desk, device):
    """With a stolen bundle key he signs the largest version there is. Its revocation is the end of that."""
    device.trust(OWNER, STRANGER)
    desk.publish("0.1.0")
    desk.forge(key=STRANGER, version=2**31 - 1)
    assert device.update()["index_version"] == 2**31 - 1
    shutil.rmtree(desk.published)
    desk.publish("0.2.0")
    device.refuses("version is 1, but 2147483647 was taken already")
    device.trust(OWNER, revoked=f"{STRANGER.public_key().key_id} stolen\n")
    assert device.update()["index_version"] == 1


def test_another_channel(desk, device):
    desk.publish("0.1.0", channel="beta")
    device.refuses("channel is beta, expected stable")
    assert device.update("--channel", "beta")["channel"] == "beta" and device.memory("beta")["version"] == 1


@pytest.mark.parametrize(("changes", "words"), [
    ({"schema": 2}, "schema is 2, this version of edge-audio-toolkit reads schema 1"), ({"blobs": {}}, "of which no size"),
    ({"version": 0}, "version is 0"), ({"profiles": {"../x": 1}}, "a key is '../x'"), ({"extra": 1}, "unknown key"),
    ({"blobs": {"ab" * 32: 1 << 40}}, "expected a size from 1 to"), ({"keyring": 0}, "keyring is 0"),
])
def test_an_index_that_is_signed_but_wrong(desk, device, changes, words):
    desk.publish("0.1.0")
    desk.forge(**changes)
    device.refuses(words)


def test_an_index_that_is_too_large_or_not_canonical(desk, device, server):
    desk.publish("0.1.0")
    data = (desk.published / "index.json").read_bytes()
    for forged, words in ((data.replace(b",", b", ", 1), "not in canonical form"), (b"[" * 5000, "not JSON"),
                          (b"7\n", "expected an object"), (data + bytes(1 << 20), "larger than 1048576 bytes")):
        (desk.published / "index.json").write_bytes(forged)
        (desk.published / "index.sig").write_bytes(sign(forged, OWNER))
        device.refuses(words)
    for name in ("index.json", "index.sig"):
        server.moods = {name: "endless"}
        device.refuses(f"{name}: larger than")


# --- attacks: files ---


def test_mixed_blobs(desk, device):
    """Two right files under each other's names."""
    desk.publish("0.1.0")
    (first, one), (second, other) = desk.blobs.items()
    (desk.published / "blobs" / first).write_bytes(other)
    (desk.published / "blobs" / second).write_bytes(one)
    sentence = device.refuses("what came is removed" if len(one) != len(other) else "another hash")
    assert first in sentence or second in sentence or "ended after" in sentence
    assert device.root.staged() == [] and [*device.root.blobs.iterdir()] == []
    (desk.published / "blobs" / first).write_bytes(one)
    (desk.published / "blobs" / second).write_bytes(other)
    assert device.update()["committed"] is True


@pytest.mark.parametrize(("mood", "words"), [
    ("endless", "bytes came; what came is removed"), ("other bytes", "bytes have another hash; what came is removed"),
])
def test_bytes_that_are_not_the_file(desk, device, server, mood, words):
    desk.publish("0.1.0")
    server.moods = {"blobs": mood}
    device.refuses(words)
    assert [*device.root.incoming.iterdir()] == []
    server.moods = {}
    assert device.update()["committed"] is True


def test_a_truncated_file_is_completed_when_the_server_has_it(desk, device, server):
    desk.publish("0.1.0")
    whole = desk.blobs
    for name, data in whole.items():
        (desk.published / "blobs" / name).write_bytes(data[:100])
    device.refuses("ended after 100 of")
    for name, data in whole.items():
        (desk.published / "blobs" / name).write_bytes(data)
    server.asked.clear()
    assert device.update()["committed"] is True
    assert [asked for path, asked in server.asked if "blobs" in path] == ["bytes=100-", None]


def test_a_connection_that_drops_is_taken_up_where_it_was(desk, device, server):
    """Half of what is left comes each time; nothing comes twice."""
    desk.publish("0.1.0")
    server.moods = {"blobs": "cut"}
    assert device.update()["committed"] is True
    ranges = [asked for path, asked in server.asked if "blobs" in path]
    starts = [int(asked[6:-1]) if asked else 0 for asked in ranges]
    assert len(ranges) > 10 and ranges.count(None) == 2  # two files
    ends = sorted(len(data) for data in desk.blobs.values())
    assert all(after > before or before >= ends[0] - 1 for before, after in zip(starts, starts[1:]))


def test_a_server_without_ranges(desk, device, server):
    desk.publish("0.1.0")
    digest = hashlib.sha256((desk.folder / WHEEL).read_bytes()).hexdigest()
    server.moods = {digest: lambda handler: handler.close_connection or handler.wfile.write(
        b"HTTP/1.0 200 OK\r\nContent-Length: 8000\r\n\r\n" + desk.blobs[digest][:3000])}
    device.refuses("ended after 3000 of 8000 bytes")
    server.moods = {digest: "no ranges"}
    assert device.update()["committed"] is True
    assert (f"/blobs/{digest}", "bytes=3000-") in server.asked


def test_another_range_than_was_asked_for(desk, device, server):
    desk.publish("0.1.0")
    device.root.make()
    for digest, data in desk.blobs.items():
        (device.root.incoming / f"{digest}.part").write_bytes(data[:100])
    server.moods = {"blobs": "another range"}
    device.refuses("sent another range than bytes=100-")
    server.moods = {}
    assert device.update()["committed"] is True


def test_a_part_that_was_spoilt_is_fetched_anew(desk, device):
    """An earlier server gave other bytes and broke off; or the size of a part makes no sense."""
    desk.publish("0.1.0")
    (digest, data), (other, rest) = desk.blobs.items()
    device.root.make()
    (device.root.incoming / f"{digest}.part").write_bytes(bytes(100))
    (device.root.incoming / f"{other}.part").write_bytes(rest + b"more")
    device.refuses(f"{digest}: its {len(data)} bytes have another hash")
    assert device.update()["committed"] is True


def test_a_part_that_was_whole_is_only_given_its_name(desk, device, server):
    desk.publish("0.1.0")
    device.root.make()
    for digest, data in desk.blobs.items():
        (device.root.incoming / f"{digest}.part").write_bytes(data)
    assert device.update()["received_bytes"] == 0
    assert not [path for path, _ in server.asked if "blobs" in path]


def test_no_room(desk, device, monkeypatch):
    desk.publish("0.1.0")
    monkeypatch.setattr("toolkit.ota.disk.free_bytes", lambda path: 100)
    device.refuses("are to come, 100 are free; free some space")


# --- attacks: the server ---


def test_no_server(device, server):
    server.close()
    device.refuses("index.sig: cannot be fetched (Connection refused)")


def test_a_server_that_trickles(desk, device, server, monkeypatch):
    """One byte of its headers, or of the index, every now and then, for ever."""
    desk.publish("0.1.0")
    monkeypatch.setattr(fetch, "STEP_S", 0.3)

    def trickle(handler, start: bytes):
        handler.wfile.write(start)
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(0.05)

    began = time.monotonic()
    server.moods = {"index": lambda handler: trickle(handler, b"HTTP/1.0 200 OK\r\nA: ")}
    device.refuses("index.sig: cannot be fetched (it took too long)")
    assert time.monotonic() - began < 3
    monkeypatch.setattr(fetch, "STEP_S", 30.0)
    server.moods = {"blobs": lambda handler: trickle(handler, b"HTTP/1.0 200 OK\r\n\r\n")}
    monkeypatch.setattr(fetch.Source.__init__, "__defaults__", (0.5,))
    device.refuses("cannot be fetched (", "took too long)")
    assert time.monotonic() - began < 5 and not device.root.staged()


@pytest.mark.parametrize(("target", "words"), [
    ("file:///etc/passwd", "the server answers 302 Found"), ("/index.sig", "the server answers 302 Found"),
    ("ftp://127.0.0.1/x", "redirected from http to ftp, which is refused"), ("\x1b[2Jhttps://x", "404 Not Found"),
])
def test_redirections_that_are_refused(desk, device, server, target, words):
    desk.publish("0.1.0")

    def redirect(handler):
        handler.wfile.write(b"HTTP/1.0 302 \x1b[31mFound\r\nLocation: " + target.encode() + b"\r\n\r\n")

    server.moods = {"index.sig": redirect}
    assert "\x1b" not in device.refuses(words)


def test_a_redirection_is_followed_but_not_from_https_to_http(desk, device, server):
    told = desk.publish("0.1.0")
    server.moods = {"/a/": lambda handler: (handler.send_response(301), handler.send_header(
        "Location", handler.path.replace("/a/", "/")), handler.end_headers())}
    assert device.update(url=f"{server.url}/a/")["release"] == told["release"]
    from urllib.request import HTTPRedirectHandler, Request

    (redirects,) = [handler for handler in fetch._make_opener().handlers if isinstance(handler, HTTPRedirectHandler)]
    asked = Request("https://example.org/index.json")
    for url, is_allowed in (("https://example.net/x", True), ("HTTPS://example.net/x", True),
                            ("http://example.org/index.json", False), ("file:///x", False)):
        if is_allowed:
            assert redirects.redirect_request(asked, None, 302, "", {}, url).full_url == url
        else:
            with pytest.raises(OSError, match="redirected from https to (http|file), which is refused"):
                redirects.redirect_request(asked, None, 302, "", {}, url)


@pytest.mark.parametrize("answer", [b"", b"\x00\x1b[2J\r\n", b"HTTP/1.0 500 \x1b[2J\r\n\r\n", b"HTTP/1.0 200 OK\r\n" * 999,
                                    b"HTTP/1.0 200 OK\r\n" + b"a" * 99_999, b"HTTP/1.1 200 OK\r\n"
                                    b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\x1b[2J"])
def test_answers_that_are_none(desk, device, server, answer):
    desk.publish("0.1.0")
    server.moods = {"index.sig": lambda handler: handler.wfile.write(answer)}
    assert "\x1b" not in device.refuses("index.sig")


@pytest.mark.parametrize("url", ["ftp://x/y", "x", "", "http://", "http:///x", "https://x/?a=b", "https://x/#a",
                                 "file://host/x", "https://x y/", "http://[::1", "http://x:99999/", "data:,x",
                                 "https://x/\x1b"])
def test_urls_that_are_none(device, url):
    assert "\x1b" not in device.refuses("expected https://HOST/PATH", url=url, status=2)


# --- keyrings ---


def rotation(*bundle_keys: tuple[PrivateKey, ...]) -> list[tuple[bytes, bytes]]:
    """Keyrings 1, 2, ... with these bundle keys; who is gone was revoked."""
    gone: set[PrivateKey] = set()
    rings = []
    for version, keys in enumerate(bundle_keys, 1):
        gone |= set(bundle_keys[version - 2]) - set(keys) if version > 1 else set()
        rings.append(signed(keyring(version, root=(A, B), bundle=keys, revoked=tuple(gone), threshold=2), A, B))
    return rings


def test_keyrings_are_followed_first(desk, device, server):
    """A device three keyrings behind takes an index, and a bundle, that only the last one trusts."""
    rings = rotation((OWNER,), (OWNER, STRANGER), (SUCCESSOR, STRANGER), (SUCCESSOR,))
    device.follow(rings[0])
    device.use(STRICT_RUNTIME)
    told = desk.publish("0.1.0", key=SUCCESSOR, trust=desk.keyrings(*rings))
    assert device.update("--dry-run")["is_noop"] is False and read_keyring(device.root.path).version == 1
    assert device.update()["release"] == told["release"]
    assert read_keyring(device.root.path).version == 4
    assert [path for path, _ in server.asked if path.startswith("/keyrings")][-1] == "/keyrings/5.json"
    assert device.must("status")["keyring_version"] == 4


def test_keyrings_that_revoke_count_even_if_the_index_is_bad(desk, device):
    """A thief who still serves his index does not undo the revocation that came with it."""
    rings = rotation((OWNER, STRANGER), (OWNER,))
    device.follow(rings[0])
    desk.publish("0.1.0", trust=desk.keyrings(*rings))
    desk.forge(key=STRANGER)
    device.refuses("which was revoked")
    assert read_keyring(device.root.path).version == 2


def test_keyrings_that_are_withheld_or_forged(desk, device, server):
    rings = rotation((OWNER,), (OWNER, SUCCESSOR))
    device.follow(rings[0])
    desk.publish("0.1.0", trust=desk.keyrings(*rings))
    folder = desk.published / "keyrings"
    (folder / "2.json").rename(folder / "2")
    device.refuses("was published with version 2 of the keyring, but", "has none after 1")
    forged = signed(keyring(2, root=(A, B), bundle=(STRANGER,), threshold=2), A, STRANGER)
    (folder / "2.json").write_bytes(forged[0])
    (folder / "2.sig").write_bytes(forged[1])
    device.refuses("keyrings/2.json: signed by 1 of the root keys")
    server.moods = {"keyrings/2.json": "endless"}
    device.refuses("keyrings/2.json: larger than 65536 bytes")
    assert read_keyring(device.root.path).version == 1


def test_no_first_keyring_comes_this_way(desk, device):
    """Nothing vouches for it. A device that trusts plain keys goes on to do so."""
    desk.publish("0.1.0", trust=desk.keyrings(*rotation((OWNER,))))
    assert device.update()["committed"] is True and read_keyring(device.root.path) is None


# --- publishing ---


def test_the_same_again_changes_nothing(desk):
    first = desk.publish("0.1.0")
    before = {path: path.stat().st_mtime_ns for path in desk.published.rglob("*") if path.is_file()}
    assert desk.publish("0.1.0") == first | {"is_new": False}
    assert {path: path.stat().st_mtime_ns for path in desk.published.rglob("*") if path.is_file()} == before
    data = (desk.published / "index.json").read_bytes()
    index, _ = check_index(data, (desk.published / "index.sig").read_bytes(), TrustedKeys([OWNER.public_key()]), "x")
    assert index.blobs == {name: len(data) for name, data in desk.blobs.items()} and index.version == 1
    assert index.profiles["board"].release.id == first["release"]


def test_a_model_alone_keeps_the_wheel(desk):
    desk.publish("0.1.0")
    desk.publish("0.2.0", wheel=False)
    index = parse_index((desk.published / "index.json").read_bytes())
    assert index.profiles["board"].release.runtime.wheel == WHEEL and index.version == 2
    assert len(desk.blobs) == 3  # that of version 1 may just be fetched
    desk.publish("0.3.0", wheel=False)
    assert len(desk.blobs) == 3
    next((desk.published / "blobs").glob(hashlib.sha256((desk.folder / WHEEL).read_bytes()).hexdigest())).unlink()
    with pytest.raises(DeployError, match="is missing or damaged"):
        desk.publish("0.4.0", wheel=False)
    with pytest.raises(DeployError, match="name the toolkit's wheel with --wheel"):
        desk.publish("0.4.0", wheel=False, profile="new")


def test_what_others_wrote_is_not_signed(desk):
    """Whoever can write into the folder, as a web server that was broken into can, gets nothing signed."""
    desk.publish("0.1.0", profile="other")
    desk.forge(key=STRANGER)
    with pytest.raises(SignatureError, match="not among the 1 trusted.*remove index.json and index.sig"):
        desk.publish("0.2.0")
    (desk.published / "index.sig").unlink()
    with pytest.raises(SignatureError, match="not signed"):
        desk.publish("0.2.0")


def test_what_devices_would_not_take_is_not_published(desk):
    folder = desk.keyrings(*rotation((OWNER, SUCCESSOR), (SUCCESSOR,)))
    with pytest.raises(SignatureError, match="does not name the key"):
        desk.publish("0.1.0", trust=folder)
    for publisher in (make_publisher(desk.published, SUCCESSOR, folder), make_publisher(desk.published, STRANGER)):
        with pytest.raises(SignatureError, match="0.1.0.eab: signed by the key .* which (was revoked|is not among)"):
            publish(publisher, desk.order("0.1.0"))  # the bundle is signed by the owner's first key
    assert not (desk.published / "index.json").exists()


@pytest.mark.parametrize("cut", ["index.json.next", "index.sig", "rename"])
def test_publishing_that_was_cut_off_is_completed(desk, device, monkeypatch, cut):
    """After each of its last three steps; devices refuse what is between, and the next call goes on."""
    desk.publish("0.1.0")
    old, write, replace = device.update()["release"], publishing.write_whole, publishing.os.replace

    def broken(path, data):
        if cut in path.name:
            raise OSError(28, "No space left on device")
        write(path, data)

    def broken_replace(source, target):
        if (cut, source.name) == ("rename", publishing.NEXT):
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "write_whole", broken)
        patch.setattr(publishing.os, "replace", broken_replace)
        with pytest.raises(EdgeAudioError, match="No space left"):
            desk.publish("0.2.0")
    if cut == "rename":
        device.refuses("altered after it was signed")
    else:
        assert device.update()["is_noop"] is True and device.root.committed == old
    told = desk.publish("0.2.0")
    assert told["version"] == 2 and device.update()["release"] == told["release"]


def test_one_folder_one_channel(desk):
    desk.publish("0.1.0")
    with pytest.raises(DeployError, match="publish each channel into a folder of its own"):
        desk.publish("0.1.0", channel="beta")
    for arguments, words in (({"channel": "No!"}, "channel is 'No!'"), ({"profile": "X"}, "profile is 'X'"),
                             ({"at_least": 2**31}, "the index would get the version")):
        with pytest.raises(UsageError, match=words):
            desk.publish("0.2.0", **arguments)


def test_the_command(desk, device, capsys):
    pytest.importorskip("yaml", reason="PyYAML is not installed (pip install pyyaml)")
    from devices.__main__ import main

    desk.order("0.1.0")
    (desk.folder / "owner.key").write_text(OWNER.to_text())
    profile = desk.folder / "board.yaml"
    profile.write_text(f"schema: 1\nname: board\nboard: b\narchitecture: {MACHINE}\nruntime: native\nflash_bytes: 99999\n"
                       "ram_bytes: 99999\nmacs_per_second: 9999999\nhop_deadline_ms: 10\ntransport: ssh\n"
                       "audio_device: default\n")
    arguments = ["publish", str(desk.published), str(profile), str(desk.folder / "0.1.0.eab"), "--wheel",
                 str(desk.folder / WHEEL), "--key", str(desk.folder / "owner.key")]
    assert main([*arguments, "--threshold", "0.7", "--microphone-channel", "1"]) == 0
    output = capsys.readouterr()
    told = json.loads(output.out)
    assert f"version 1 offers the release {told['release']} to board" in output.err and told["is_new"] is True
    index = json.loads((desk.published / "index.json").read_bytes())
    release = index["profiles"]["board"]["release"]
    assert release["listen"] == {"device": None, "channel": 1, "threshold": 0.7}
    assert short_id(release) == told["release"] == device.update()["release"]
    assert main([*arguments[:3], "--key", "nowhere", *arguments[3:6]]) == 2
    assert "cannot read the key" in capsys.readouterr().err


# --- the units ---


def test_systemd_takes_the_units(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (Debian: systemd)")
    folder = tmp_path / "etc" / "systemd" / "system"
    folder.mkdir(parents=True)
    units = [CHECKOUT / "devices" / "rpi" / f"edge-audio-update.{kind}" for kind in ("service", "timer")]
    for unit in units:
        shutil.copy(unit, folder)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sh").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "sh").chmod(0o755)
    for unit in units:
        done = subprocess.run(["systemd-analyze", f"--root={tmp_path}", "--recursive-errors=no", "verify",
                               str(folder / unit.name)], capture_output=True, text=True)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
    done = subprocess.run(["systemd-analyze", "calendar", "hourly"], capture_output=True, text=True)
    assert done.returncode == 0


def test_the_unit_runs_the_committed_release(tmp_path):
    """Its line of shell, with its variables set: the real path of the runtime, options as words, the URL as one."""
    text = (CHECKOUT / "devices" / "rpi" / "edge-audio-update.service").read_text("utf-8").replace("\\\n", "")
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    script = line.split("'")[1].replace("$$", "$").replace("/opt/edge-audio", str(tmp_path))
    python = tmp_path / "runtimes" / "key" / "bin" / "python"
    Device.write_program(python, "#!/bin/sh\nprintf '%s\\n' \"$0\" \"$@\"\n")
    (tmp_path / "releases" / "id").mkdir(parents=True)
    (tmp_path / "releases" / "id" / "runtime").symlink_to("../../runtimes/key")
    (tmp_path / "committed").symlink_to("releases/id")
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True,
                          env={"PATH": "/usr/bin:/bin", "EDGE_AUDIO_UPDATE_URL": "https://example.org/a b",
                               "EDGE_AUDIO_UPDATE_OPTIONS": "--profile rpi4"})
    assert done.stdout.splitlines() == [str(python), "-I", "-m", "toolkit", "update", "--profile", "rpi4",
                                        "https://example.org/a b"]
