"""Downloads from a server on this machine: good, altered, interrupted and unsafe archives leave what they should."""

from __future__ import annotations

import hashlib
import io
import tarfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from threading import Thread

import pytest

pytest.importorskip("pooch", reason="pooch, which fetches data sets, is not installed")

from models import fetch as fetching
from models.fetch import SETS, Source, fetch
from toolkit.errors import DataError, UsageError


class Server:
    """Serves ``body`` at /words.tar.gz; ``cut`` ends the next answers after so many bytes of the body."""

    def __init__(self, body: bytes, ranges: bool = True):
        self.body, self.ranges, self.status = body, ranges, 200
        self.cut: int | None = None
        self.asked: list[str | None] = []  # Range header of each request
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):  # noqa: N802
                wanted = self.headers.get("Range")
                server.asked.append(wanted)
                start = int(wanted[len("bytes=") : -1]) if wanted and server.ranges else 0
                total = len(server.body)
                if server.status != 200:
                    return self.send_error(server.status)
                if start >= total:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{total}")
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
                self.send_header("Content-Length", str(total - start))
                self.end_headers()
                end = total if server.cut is None else min(total, start + server.cut)
                self.wfile.write(server.body[start:end])

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/words.tar.gz"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def archive(members: dict[str, bytes | str]) -> bytes:
    """A tar.gz; a member that is a text is a symbolic link to it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


GOOD = archive({"./up/a_nohash_0.wav": Random(0).randbytes(300_000), "LICENSE": b"CC BY 4.0"})


@pytest.fixture
def serve(monkeypatch):
    """A function that serves an archive as the data set "words" and returns the server."""
    servers = []
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def start(body: bytes, sha256: str | None = None, unpacked_bytes: int = 0, **options) -> Server:
        server = Server(body, **options)
        servers.append(server)
        source = Source(server.url, sha256 or hashlib.sha256(body).hexdigest(), len(body), unpacked_bytes, "CC BY 4.0")
        monkeypatch.setitem(SETS, "words", source)
        return server

    yield start
    for server in servers:
        server.close()


def left_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_good_archive_is_unpacked_and_removed(serve, tmp_path, capsys):
    serve(GOOD)
    folder = fetch("words", tmp_path / "data")
    assert folder == tmp_path / "data" / "words"
    assert left_in(tmp_path) == ["data/words/LICENSE", "data/words/up/a_nohash_0.wav"]
    assert (folder / "LICENSE").read_bytes() == b"CC BY 4.0"
    assert folder.stat().st_mode & 0o055 == 0o055  # others may read it
    out = capsys.readouterr()
    assert out.out == "" and "licence CC BY 4.0" in out.err


def test_what_is_there_is_not_fetched_again(serve, tmp_path, capsys):
    server = serve(GOOD)
    fetch("words", tmp_path)
    assert fetch("words", tmp_path) == tmp_path / "words"
    assert len(server.asked) == 1 and "is there already" in capsys.readouterr().err


def test_an_archive_with_the_wrong_hash_is_refused_and_removed(serve, tmp_path):
    serve(GOOD[:-1] + bytes([GOOD[-1] ^ 1]), hashlib.sha256(GOOD).hexdigest())
    with pytest.raises(DataError, match="SHA-256 is not " + hashlib.sha256(GOOD).hexdigest()):
        fetch("words", tmp_path)
    assert left_in(tmp_path) == []


def test_an_interrupted_download_goes_on_where_it_stopped(serve, tmp_path):
    server = serve(GOOD)
    server.cut = 200_000
    with pytest.raises(DataError, match="run the command again, it goes on where it stopped"):
        fetch("words", tmp_path)
    assert left_in(tmp_path) == ["words.tar.gz.part"]
    have = (tmp_path / "words.tar.gz.part").stat().st_size
    assert 134_000 < have <= 200_000
    server.cut = None
    fetch("words", tmp_path)
    assert server.asked == [None, f"bytes={have}-"]
    assert left_in(tmp_path) == ["words/LICENSE", "words/up/a_nohash_0.wav"]


def test_a_server_without_ranges_starts_over(serve, tmp_path):
    serve(GOOD, ranges=False)
    (tmp_path / "words.tar.gz.part").write_bytes(b"x" * 30_000)
    fetch("words", tmp_path)
    assert left_in(tmp_path) == ["words/LICENSE", "words/up/a_nohash_0.wav"]


@pytest.mark.parametrize("part", [GOOD, GOOD + b"more"], ids=["complete", "too long"])
def test_a_part_that_is_complete_is_used_and_one_that_is_too_long_dropped(serve, tmp_path, part):
    server = serve(GOOD)
    (tmp_path / "words.tar.gz.part").write_bytes(part)
    fetch("words", tmp_path)
    assert left_in(tmp_path) == ["words/LICENSE", "words/up/a_nohash_0.wav"]
    assert len(server.asked) == (1 if part == GOOD else 2)


def test_a_part_of_something_else_is_found_out_by_the_hash(serve, tmp_path):
    serve(GOOD)
    (tmp_path / "words.tar.gz.part").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="was removed"):
        fetch("words", tmp_path)
    fetch("words", tmp_path)
    assert left_in(tmp_path) == ["words/LICENSE", "words/up/a_nohash_0.wav"]


def test_an_archive_that_a_person_brought_is_used(serve, tmp_path):
    server = serve(GOOD)
    (tmp_path / "words.tar.gz").write_bytes(GOOD)
    fetch("words", tmp_path)
    assert server.asked == [] and (tmp_path / "words" / "LICENSE").exists()


@pytest.mark.parametrize(
    "members",
    [
        {"up/a.wav": b"a", "../outside.txt": b"x"},
        {"up/a.wav": b"a", "up/link": "../../outside"},
        {"up/a.wav": b"a", "up/link": "/etc/passwd"},
    ],
    ids=["parent", "link out", "absolute link"],
)
def test_an_archive_that_reaches_outside_is_refused(serve, tmp_path, members):
    serve(archive(members))
    with pytest.raises(DataError, match="not safe to unpack"):
        fetch("words", tmp_path / "data")
    assert left_in(tmp_path) == ["data/words.tar.gz"]
    assert not (tmp_path / "data" / "words").exists()


def test_what_is_no_archive_is_refused(serve, tmp_path):
    serve(b"<html>not found</html>")
    with pytest.raises(DataError, match="not a complete tar archive"):
        fetch("words", tmp_path)
    assert not (tmp_path / "words").exists()


def test_an_answer_of_the_server_is_passed_on(serve, tmp_path):
    serve(GOOD).status = 404
    with pytest.raises(DataError, match=r"cannot be downloaded \(the server answered 404\)"):
        fetch("words", tmp_path)


def test_no_connection_is_one_sentence(serve, tmp_path):
    serve(GOOD).close()
    with pytest.raises(DataError, match=r"\(no connection\)"):
        fetch("words", tmp_path)


def test_a_full_disk_is_noticed_before_the_download(serve, tmp_path):
    server = serve(GOOD, unpacked_bytes=1 << 60)
    with pytest.raises(DataError, match="GB are needed"):
        fetch("words", tmp_path)
    assert server.asked == []


def test_a_destination_that_is_a_file(serve, tmp_path):
    serve(GOOD)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written to"):
        fetch("words", tmp_path / "file")


def test_an_unknown_name_says_the_nearest(tmp_path):
    with pytest.raises(UsageError, match="did you mean speech_commands"):
        fetch("speech_comands", tmp_path)
    with pytest.raises(UsageError, match="known: speech_commands"):
        fetch("zzz", tmp_path)


def test_every_source_is_pinned():
    for name, source in fetching.SETS.items():
        assert len(bytes.fromhex(source.sha256)) == 32, name
        assert source.url.endswith((".tar.gz", ".tgz", ".tar")) and source.licence
