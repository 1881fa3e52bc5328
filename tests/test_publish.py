"""`python -m devices publish`: what devices find in the folder, and what is never signed or half written."""

from __future__ import annotations

import json

import pytest
from bundle_factory import OWNER, STRANGER
from pull_device import MACHINE, SUCCESSOR, WHEEL, rotation

from devices import publish as publishing
from devices.__main__ import main
from devices.publish import make_publisher, publish
from toolkit.errors import DeployError, EdgeAudioError, SignatureError, UsageError
from toolkit.ota.index import check_index, parse_index
from toolkit.ota.release import short_id
from toolkit.signature import TrustedKeys

pytest_plugins = ["pull_fixtures"]


def test_the_same_again_changes_nothing(publisher):
    first = publisher.publish("0.1.0")
    before = {path: path.stat().st_mtime_ns for path in publisher.published.rglob("*") if path.is_file()}
    assert publisher.publish("0.1.0") == first | {"is_new": False}
    assert {path: path.stat().st_mtime_ns for path in publisher.published.rglob("*") if path.is_file()} == before
    data = (publisher.published / "index.json").read_bytes()
    signature, keys = (publisher.published / "index.sig").read_bytes(), TrustedKeys([OWNER.public_key()])
    index, _ = check_index(data, signature, keys, "published")
    assert index.blobs == {name: len(data) for name, data in publisher.blobs.items()} and index.version == 1
    assert index.profiles["board"].release.id == first["release"]


def test_a_model_alone_keeps_the_wheel(publisher):
    publisher.publish("0.1.0")
    publisher.publish("0.2.0", wheel=False)
    index = parse_index((publisher.published / "index.json").read_bytes())
    assert index.profiles["board"].release.runtime.wheel == WHEEL and index.version == 2
    assert len(publisher.blobs) == 3  # that of version 1 may just be fetched
    publisher.publish("0.3.0", wheel=False)
    assert len(publisher.blobs) == 3
    (publisher.published / "blobs" / index.profiles["board"].release.runtime.sha256).unlink()
    with pytest.raises(DeployError, match="is missing or damaged"):
        publisher.publish("0.4.0", wheel=False)
    with pytest.raises(DeployError, match="name the toolkit's wheel with --wheel"):
        publisher.publish("0.4.0", wheel=False, profile="new")


def test_what_others_wrote_is_not_signed(publisher):
    """Whoever can write into the folder, as a web server that was broken into can, gets nothing signed."""
    publisher.publish("0.1.0", profile="other")
    publisher.forge(key=STRANGER)
    with pytest.raises(SignatureError, match="not among the 1 trusted.*remove index.json and index.sig"):
        publisher.publish("0.2.0")
    (publisher.published / "index.sig").unlink()
    with pytest.raises(SignatureError, match="not signed"):
        publisher.publish("0.2.0")


def test_what_devices_would_not_take_is_not_published(publisher):
    folder = publisher.keyrings(*rotation((OWNER, SUCCESSOR), (SUCCESSOR,)))
    with pytest.raises(SignatureError, match="does not name the key"):
        publisher.publish("0.1.0", trust=folder)
    for one in (make_publisher(publisher.published, SUCCESSOR, folder), make_publisher(publisher.published, STRANGER)):
        with pytest.raises(SignatureError, match="0.1.0.eab: signed by the key .* which (was revoked|is not among)"):
            publish(one, publisher.order("0.1.0"))  # the bundle is signed by the owner's first key
    assert not (publisher.published / "index.json").exists()


@pytest.mark.parametrize("cut", ["index.json.next", "index.sig", "rename"])
def test_publishing_that_was_cut_off_is_completed(publisher, puller, monkeypatch, cut):
    """After each of its last three steps; devices refuse what is between, and the next call goes on."""
    publisher.publish("0.1.0")
    old, write, replace = puller.update()["release"], publishing.write_whole, publishing.os.replace

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
            publisher.publish("0.2.0")
    if cut == "rename":
        puller.refuses("altered after it was signed")
    else:
        assert puller.update()["is_noop"] is True and puller.root.committed == old
    told = publisher.publish("0.2.0")
    assert told["version"] == 2 and puller.update()["release"] == told["release"]


def test_one_folder_one_channel(publisher):
    publisher.publish("0.1.0")
    with pytest.raises(DeployError, match="publish each channel into a folder of its own"):
        publisher.publish("0.1.0", channel="beta")
    for arguments, words in (({"channel": "No!"}, "channel is 'No!'"), ({"profile": "X"}, "profile is 'X'"),
                             ({"at_least": 2**31}, "the index would get the version")):
        with pytest.raises(UsageError, match=words):
            publisher.publish("0.2.0", **arguments)


def test_the_command(publisher, puller, capsys):
    pytest.importorskip("yaml", reason="PyYAML is not installed (pip install pyyaml)")
    publisher.order("0.1.0")
    (publisher.folder / "owner.key").write_text(OWNER.to_text())
    profile = publisher.folder / "board.yaml"
    profile.write_text(f"schema: 1\nname: board\nboard: b\narchitecture: {MACHINE}\nruntime: native\n"
                       "flash_bytes: 99999\nram_bytes: 99999\nmacs_per_second: 9999999\nhop_deadline_ms: 10\n"
                       "transport: ssh\naudio_device: default\n")
    arguments = ["publish", str(publisher.published), str(profile), str(publisher.folder / "0.1.0.eab"), "--wheel",
                 str(publisher.folder / WHEEL), "--key", str(publisher.folder / "owner.key")]
    assert main([*arguments, "--threshold", "0.7", "--microphone-channel", "1"]) == 0
    output = capsys.readouterr()
    told = json.loads(output.out)
    assert f"version 1 offers the release {told['release']} to board" in output.err and told["is_new"] is True
    index = json.loads((publisher.published / "index.json").read_bytes())
    release = index["profiles"]["board"]["release"]
    assert release["listen"] == {"device": None, "channel": 1, "threshold": 0.7}
    assert short_id(release) == told["release"] == puller.update()["release"]
    assert main([*arguments[:3], "--key", "nowhere", *arguments[3:6]]) == 2
    assert "cannot read the key" in capsys.readouterr().err
