"""What a web server, or whoever stands between, may do to a device that fetches its release: the list of
test_attacks.py once more, and what a network adds to it. The device keeps what works, and says why in a sentence.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import shutil
import ssl
import time
from pathlib import Path
from urllib.request import HTTPRedirectHandler, Request

import pytest
from bundle_factory import OWNER, STRANGER, make_bytes
from pull_device import SUCCESSOR, WHEEL, Web

from toolkit.bundle import walk
from toolkit.ota import fetch
from toolkit.signature import sign

pytest_plugins = ["pull_fixtures"]


# --- attacks: the index ---


def test_an_index_that_is_not_signed(publisher, puller):
    publisher.publish("0.1.0")
    publisher.forge(key=None, version=2)
    puller.refuses("index.json: altered after it was signed by the key")
    (publisher.published / "index.sig").write_bytes(b"")
    puller.refuses("index.sig is not a line ed25519-signature")
    (publisher.published / "index.sig").unlink()
    puller.refuses("index.sig: the server answers 404 Not Found")
    assert not puller.root.index_file.exists()


def test_an_index_of_a_stranger(publisher, puller):
    publisher.publish("0.1.0", key=STRANGER)
    puller.refuses(f"signed by the key {STRANGER.public_key().key_id}, which is not among the 1 trusted")


def test_an_index_of_a_revoked_key(publisher, puller):
    publisher.publish("0.1.0")
    puller.trust(OWNER, SUCCESSOR, revoked=f"{OWNER.public_key().key_id} stolen on a train\n")
    puller.refuses("which was revoked (stolen on a train)")


def test_a_device_that_trusts_nobody(publisher, puller):
    publisher.publish("0.1.0")
    shutil.rmtree(puller.root.trust)
    puller.refuses("trusts nobody yet; deploy to this device over SSH first")


def test_a_bundle_manifest_is_no_index(publisher, puller):
    """The same keys sign both: neither can pass for the other."""
    publisher.publish("0.1.0")
    entries = walk(make_bytes(OWNER), "")
    (publisher.published / "index.json").write_bytes(entries["manifest.json"])
    (publisher.published / "index.sig").write_bytes(entries["manifest.sig"])
    puller.refuses("schema is 2")


def test_an_older_index(publisher, puller, tmp_path):
    publisher.publish("0.1.0")
    shutil.copytree(publisher.published, tmp_path / "old")
    publisher.publish("0.2.0")
    release = puller.update()["release"]
    shutil.rmtree(publisher.published)
    shutil.copytree(tmp_path / "old", publisher.published)
    puller.refuses("version is 1, but 2 was taken already; an older index is never taken again")
    assert puller.root.committed == release and puller.memory()["version"] == 2


def test_two_indexes_of_one_version(publisher, puller, tmp_path):
    publisher.publish("0.1.0")
    puller.update()
    publisher.publish("0.2.0", folder=tmp_path / "elsewhere")
    shutil.rmtree(publisher.published)
    shutil.copytree(tmp_path / "elsewhere", publisher.published)
    puller.refuses("version 1 was taken already, and was another")
    shutil.rmtree(publisher.published)
    publisher.publish("0.2.0", at_least=2)  # how the owner goes on when his folder was lost
    assert puller.update()["index_version"] == 2


def test_a_thief_cannot_lock_the_owner_out(publisher, puller):
    """With a stolen bundle key he signs the largest version there is. Its revocation is the end of that."""
    puller.trust(OWNER, STRANGER)
    publisher.publish("0.1.0")
    publisher.forge(key=STRANGER, version=2**31 - 1)
    assert puller.update()["index_version"] == 2**31 - 1
    shutil.rmtree(publisher.published)
    publisher.publish("0.2.0")
    puller.refuses("version is 1, but 2147483647 was taken already")
    puller.trust(OWNER, revoked=f"{STRANGER.public_key().key_id} stolen\n")
    assert puller.update()["index_version"] == 1


def test_another_channel(publisher, puller):
    publisher.publish("0.1.0", channel="beta")
    puller.refuses("channel is beta, expected stable")
    assert puller.update("--channel", "beta")["channel"] == "beta" and puller.memory("beta")["version"] == 1


@pytest.mark.parametrize(("changes", "words"), [
    ({"schema": 2}, "schema is 2, this version of edge-audio-toolkit reads schema 1"),
    ({"blobs": {}}, "of which no size is given"),
    ({"version": 0}, "version is 0"), ({"profiles": {"../x": 1}}, "a key is '../x'"), ({"extra": 1}, "unknown key"),
    ({"blobs": {"ab" * 32: 1 << 40}}, "expected a size from 1 to"), ({"keyring": 0}, "keyring is 0"),
])
def test_an_index_that_is_signed_but_wrong(publisher, puller, changes, words):
    publisher.publish("0.1.0")
    publisher.forge(**changes)
    puller.refuses(words)


def test_an_index_that_is_too_large_or_not_canonical(publisher, puller, web):
    publisher.publish("0.1.0")
    data = (publisher.published / "index.json").read_bytes()
    for forged, words in ((data.replace(b",", b", ", 1), "not in canonical form"), (b"[" * 5000, "not JSON"),
                          (b"7\n", "expected an object"), (data + bytes(1 << 20), "larger than 1048576 bytes")):
        (publisher.published / "index.json").write_bytes(forged)
        (publisher.published / "index.sig").write_bytes(sign(forged, OWNER))
        puller.refuses(words)
    for name in ("index.json", "index.sig"):
        web.moods = {name: "endless"}
        puller.refuses(f"{name}: larger than")


# --- attacks: files ---


def test_mixed_blobs(publisher, puller):
    """Two right files under each other's names."""
    publisher.publish("0.1.0")
    (first, one), (second, other) = publisher.blobs.items()
    (publisher.published / "blobs" / first).write_bytes(other)
    (publisher.published / "blobs" / second).write_bytes(one)
    sentence = puller.refuses("what came is removed" if len(one) != len(other) else "another hash")
    assert first in sentence or second in sentence or "ended after" in sentence
    assert puller.root.staged() == [] and [*puller.root.blobs.iterdir()] == []
    (publisher.published / "blobs" / first).write_bytes(one)
    (publisher.published / "blobs" / second).write_bytes(other)
    assert puller.update()["committed"] is True


@pytest.mark.parametrize(("mood", "words"), [
    ("endless", "bytes came; what came is removed"), ("other bytes", "bytes have another hash; what came is removed"),
])
def test_bytes_that_are_not_the_file(publisher, puller, web, mood, words):
    publisher.publish("0.1.0")
    web.moods = {"blobs": mood}
    puller.refuses(words)
    assert [*puller.root.incoming.iterdir()] == []
    web.moods = {}
    assert puller.update()["committed"] is True


def test_a_truncated_file_is_completed_when_the_server_has_it(publisher, puller, web):
    publisher.publish("0.1.0")
    whole = publisher.blobs
    for name, data in whole.items():
        (publisher.published / "blobs" / name).write_bytes(data[:100])
    puller.refuses("ended after 100 of")
    for name, data in whole.items():
        (publisher.published / "blobs" / name).write_bytes(data)
    web.asked.clear()
    assert puller.update()["committed"] is True
    assert [asked for path, asked in web.asked if "blobs" in path] == ["bytes=100-", None]


def test_a_connection_that_drops_is_taken_up_where_it_was(publisher, puller, web):
    """Half of what is left comes each time; nothing comes twice."""
    publisher.publish("0.1.0")
    web.moods = {"blobs": "cut"}
    assert puller.update()["committed"] is True
    for digest in publisher.blobs:
        starts = [int(asked[6:-1]) if asked else 0 for path, asked in web.asked if digest in path]
        assert len(starts) > 5 and starts == sorted(set(starts)) and starts[0] == 0


def test_a_server_without_ranges(publisher, puller, web):
    publisher.publish("0.1.0")
    digest = hashlib.sha256((publisher.folder / WHEEL).read_bytes()).hexdigest()
    web.moods = {digest: lambda answer: answer.wfile.write(
        b"HTTP/1.0 200 OK\r\nContent-Length: 8000\r\n\r\n" + publisher.blobs[digest][:3000])}
    puller.refuses("ended after 3000 of 8000 bytes")
    web.moods = {digest: "no ranges"}
    assert puller.update()["committed"] is True
    assert (f"/blobs/{digest}", "bytes=3000-") in web.asked


def test_another_range_than_was_asked_for(publisher, puller, web):
    publisher.publish("0.1.0")
    puller.root.make()
    for digest, data in publisher.blobs.items():
        (puller.root.incoming / f"{digest}.part").write_bytes(data[:100])
    web.moods = {"blobs": "another range"}
    puller.refuses("sent another range than bytes=100-")
    web.moods = {}
    assert puller.update()["committed"] is True


def test_a_part_that_was_spoilt_is_fetched_anew(publisher, puller):
    """An earlier server gave other bytes and broke off; or the size of a part makes no sense."""
    publisher.publish("0.1.0")
    (digest, data), (other, rest) = publisher.blobs.items()
    puller.root.make()
    (puller.root.incoming / f"{digest}.part").write_bytes(bytes(100))
    (puller.root.incoming / f"{other}.part").write_bytes(rest + b"more")
    puller.refuses(f"{digest}: its {len(data)} bytes have another hash")
    assert puller.update()["committed"] is True


def test_a_part_that_was_whole_is_only_given_its_name(publisher, puller, web):
    publisher.publish("0.1.0")
    puller.root.make()
    for digest, data in publisher.blobs.items():
        (puller.root.incoming / f"{digest}.part").write_bytes(data)
    assert puller.update()["received_bytes"] == 0
    assert not [path for path, _ in web.asked if "blobs" in path]


def test_no_room(publisher, puller, monkeypatch):
    publisher.publish("0.1.0")
    monkeypatch.setattr("toolkit.ota.disk.free_bytes", lambda path: 100)
    puller.refuses("are to come, 100 are free; free some space")


# --- attacks: the server ---


def test_no_server(puller, web):
    web.close()
    puller.refuses("index.sig: cannot be fetched (Connection refused)")


def test_a_server_that_trickles(publisher, puller, web, monkeypatch):
    """One byte of its headers, or of the index, every now and then, for ever."""
    publisher.publish("0.1.0")
    monkeypatch.setattr(fetch, "STEP_S", 0.3)

    def trickle(handler, start: bytes):
        handler.wfile.write(start)
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(0.05)

    began = time.monotonic()
    web.moods = {"index": lambda handler: trickle(handler, b"HTTP/1.0 200 OK\r\nA: ")}
    puller.refuses("index.sig: cannot be fetched (it took too long)")
    assert time.monotonic() - began < 3
    monkeypatch.setattr(fetch, "STEP_S", 30.0)
    web.moods = {"blobs": lambda handler: trickle(handler, b"HTTP/1.0 200 OK\r\n\r\n")}
    monkeypatch.setattr(fetch.Source.__init__, "__defaults__", (0.5,))
    puller.refuses("cannot be fetched (", "took too long)")
    assert time.monotonic() - began < 5 and not puller.root.staged()


@pytest.mark.parametrize(("target", "words"), [
    ("file:///etc/passwd", "the server answers 302 Found"), ("/index.sig", "the server answers 302 Found"),
    ("ftp://127.0.0.1/x", "redirected from http to ftp, which is refused"), ("\x1b[2Jhttps://x", "404 Not Found"),
])
def test_redirections_that_are_refused(publisher, puller, web, target, words):
    publisher.publish("0.1.0")

    def redirect(handler):
        handler.wfile.write(b"HTTP/1.0 302 \x1b[31mFound\r\nLocation: " + target.encode() + b"\r\n\r\n")

    web.moods = {"index.sig": redirect}
    assert "\x1b" not in puller.refuses(words)


def test_a_redirection_is_followed_but_not_from_https_to_http(publisher, puller, web):
    told = publisher.publish("0.1.0")
    web.moods = {"/a/": lambda handler: (handler.send_response(301), handler.send_header(
        "Location", handler.path.replace("/a/", "/")), handler.end_headers())}
    assert puller.update(url=f"{web.url}/a/")["release"] == told["release"]
    (redirects,) = [handler for handler in fetch._make_opener().handlers if isinstance(handler, HTTPRedirectHandler)]
    asked = Request("https://example.org/index.json")
    for url in ("https://example.net/x", "HTTPS://example.net/x"):
        assert redirects.redirect_request(asked, None, 302, "", {}, url).full_url == url
    for url in ("http://example.org/index.json", "file:///x"):
        with pytest.raises(OSError, match="redirected from https to (http|file), which is refused"):
            redirects.redirect_request(asked, None, 302, "", {}, url)


def test_https(publisher, puller, web, tmp_path, monkeypatch):
    """Real TLS: a certificate that nobody vouches for is refused, and so is the way out of it, to http."""
    certificate = make_certificate(tmp_path / "server.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    secure = Web(publisher.published, context)
    try:
        told = publisher.publish("0.1.0")
        puller.refuses("index.sig: cannot be fetched (", "certificate verify failed", url=secure.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        secure.moods = {"index.json": lambda answer: (answer.send_response(302), answer.send_header(
            "Location", f"{web.url}/index.json"), answer.end_headers())}
        puller.refuses("redirected from https to http, which is refused", url=secure.url)
        assert web.asked == []
        secure.moods = {"blobs": "cut"}
        assert puller.update(url=secure.url)["release"] == told["release"]
    finally:
        secure.close()


def make_certificate(path: Path) -> Path:
    """Of 127.0.0.1, signed by itself; with its key."""
    hashes = pytest.importorskip("cryptography.hazmat.primitives.hashes", reason="cryptography is not installed")
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True).sign(key, hashes.SHA256()))
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return path


@pytest.mark.parametrize("answer", [
    b"", b"\x00\x1b[2J\r\n", b"HTTP/1.0 500 \x1b[2J\r\n\r\n", b"HTTP/1.0 200 OK\r\n" * 999,
    b"HTTP/1.0 200 OK\r\n" + b"a" * 99_999, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\x1b[2J"])
def test_answers_that_are_none(publisher, puller, web, answer):
    publisher.publish("0.1.0")
    web.moods = {"index.sig": lambda handler: handler.wfile.write(answer)}
    assert "\x1b" not in puller.refuses("index.sig")


@pytest.mark.parametrize("url", ["ftp://x/y", "x", "", "http://", "http:///x", "https://x/?a=b", "https://x/#a",
                                 "file://host/x", "https://x y/", "http://[::1", "http://x:99999/", "data:,x",
                                 "https://x/\x1b"])
def test_urls_that_are_none(puller, url):
    assert "\x1b" not in puller.refuses("expected https://HOST/PATH", url=url, status=2)
    assert not puller.root.blobs.exists()  # not even begun
