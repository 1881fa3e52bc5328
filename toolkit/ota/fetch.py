"""Files below a URL (https, http, or file of a USB stick): no more of them than was asked for, and not for too long.

Nothing that comes from here is believed: a signature or a hash says later whether it is right. What this file sees to
is that a server which means harm, or has gone mad, wins no memory, no disk and no more than some minutes.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from toolkit import __version__
from toolkit.errors import DeployError, UsageError

STEP_S = 30.0  # to connect and answer, and for each piece after that
PATIENCE_S = 1200.0  # for everything together: the lock is held meanwhile. What has come by then is kept
PIECE_BYTES = 256 << 10
ABSENT = (403, 404, 410)  # 403: what stores in the cloud say of a file that is not there, to who may not list them


class Unreachable(DeployError):
    """No answer, another than was expected, or its end came too early; the same again may do."""


class Absent(Unreachable):
    """There is no such file."""


class Source:
    """What lies below ``url``, until ``patience_s`` from now. UsageError for a URL that is none of ours.

    For the main thread: SIGALRM bounds every step, name resolution and headers that trickle in included.
    """

    def __init__(self, url: str, patience_s: float = PATIENCE_S):
        try:
            parts = urlsplit(url)
            is_right = parts.scheme in ("https", "http") and parts.hostname and parts.port != 0
        except ValueError:
            parts, is_right = urlsplit(""), False
        is_right = is_right or (parts.scheme == "file" and parts.netloc in ("", "localhost"))
        if not is_right or parts.query or parts.fragment or not url.isprintable() or " " in url:
            raise UsageError(f"URL is {url!a}, expected https://HOST/PATH, http://HOST/PATH or file:///PATH of a "
                             f"folder that `python -m devices publish` made.")
        self.url, self._is_file = url.rstrip("/"), parts.scheme == "file"
        self._deadline = time.monotonic() + patience_s
        self._opener: Any = None

    def read(self, path: str, limit: int) -> bytes:
        """The whole file; Absent if there is none, DeployError if it is larger than ``limit`` bytes."""
        data = b""
        for piece in self.pieces(path):
            data += piece
            if len(data) > limit:
                raise DeployError(f"{self.url}/{path}: larger than {limit} bytes, the limit for such a file; "
                                  f"is this the right URL?")
        return data

    def pieces(self, path: str, offset: int = 0) -> Iterator[bytes]:
        """The file from byte ``offset`` on, as it comes and for as long as it does; Unreachable."""
        from http.client import HTTPException

        where = f"{self.url}/{path}"
        try:
            yield from (self._pieces_of_file if self._is_file else self._pieces_of_answer)(where, offset)
        except Unreachable:
            raise
        except (OSError, HTTPException, ValueError) as error:
            raise self._unreachable(where, error) from None

    def _pieces_of_file(self, where: str, offset: int) -> Iterator[bytes]:
        with self._step(lambda: open(unquote(urlsplit(where).path), "rb", buffering=0)) as file:
            file.seek(offset)
            while data := self._step(lambda: file.read(PIECE_BYTES)):
                yield data

    def _pieces_of_answer(self, where: str, offset: int) -> Iterator[bytes]:
        from urllib.request import Request  # it loads hashlib, ssl and more: only a device that pulls needs them

        self._opener = self._opener or _make_opener()
        headers = {"User-Agent": f"edge-audio/{__version__}"} | ({"Range": f"bytes={offset}-"} if offset else {})
        with self._step(lambda: self._opener.open(Request(where, headers=headers))) as answer:
            known = offset  # bytes of the answer that we have: all of these, from a server that knows no ranges
            if answer.status == 206:
                if not answer.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                    raise Unreachable(f"{where}: the server sent another range than bytes={offset}-; use another one.")
                known = 0
            while data := self._step(lambda: answer.read1(PIECE_BYTES)):
                if data[known:]:
                    yield data[known:]
                known = max(0, known - len(data))

    def _step(self, call: Callable[[], Any]) -> Any:
        """``call()``, if it ends within STEP_S and before all patience has; else TimeoutError."""
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("all of it took too long")
        with _alarm(min(STEP_S, left_s)):
            return call()

    @staticmethod
    def _unreachable(where: str, error: Exception) -> Unreachable:
        """Nothing in a server's own words may steer the terminal."""
        import http.client
        import urllib.error

        if isinstance(error, FileNotFoundError):
            return Absent(f"{where}: there is no such file; check the URL.")
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            words = f"{error.code} {http.client.responses.get(error.code, '')}".strip()
            kind = Absent if error.code in ABSENT else Unreachable
            return kind(f"{where}: the server answers {words}; check the URL.")
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        words = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        words = "".join(character if character.isprintable() else "?" for character in words)[:200].rstrip(".")
        return Unreachable(f"{where}: cannot be fetched ({words}); check the network and try again.")


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """TimeoutError out of whatever is going on after ``seconds``."""
    def stop(number, frame) -> None:
        raise TimeoutError("it took too long")

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def _make_opener() -> Any:
    """http and https through the proxies of the environment; never from https to something less, never to a file."""
    import urllib.error
    import urllib.request as request

    class Redirects(request.HTTPRedirectHandler):
        def redirect_request(self, asked, file, code, message, headers, url):
            if not url.lower().startswith("https:" if asked.type == "https" else ("https:", "http:")):
                raise urllib.error.URLError(f"redirected from {asked.type} to {urlsplit(url).scheme}, which is refused")
            return super().redirect_request(asked, file, code, message, headers, url)

    opener = request.OpenerDirector()
    for handler in (request.ProxyHandler, request.HTTPHandler, request.HTTPSHandler, request.HTTPDefaultErrorHandler,
                    Redirects, request.HTTPErrorProcessor):
        opener.add_handler(handler())
    return opener
