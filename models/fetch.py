"""Public data sets, downloaded with a known hash and unpacked whole or not at all.

    fetch("speech_commands", "data")  ->  data/speech_commands

The archive is pinned by its SHA-256, so that plain http is enough. An interrupted download goes on where it stopped,
where the server allows it; the folder appears by one rename after everything is in it.
"""

from __future__ import annotations

import difflib
import shutil
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pooch
import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from toolkit.errors import DataError, UsageError

CHUNK_BYTES = 1 << 16  # an interruption loses less than one chunk
TIMEOUT_S = 60


@dataclass(frozen=True)
class Source:
    """Where a data set comes from."""

    url: str
    sha256: str
    archive_bytes: int  # as the server gives it
    unpacked_bytes: int  # about
    licence: str


SETS = {
    # sha256 as in torchaudio.datasets.speechcommands and in the checksums of TensorFlow Datasets; 105,829 clips.
    "speech_commands": Source(
        "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
        "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
        archive_bytes=2_428_923_189,
        unpacked_bytes=3_500_000_000,
        licence="CC BY 4.0, Pete Warden 2018",
    ),
}


def fetch(name: str, dest: str | Path) -> Path:
    """Download and unpack the data set ``name`` into ``dest / name``, unless it is there, and return that folder.

    Raises UsageError (unknown name) and DataError (no space, no connection, wrong hash, unsafe archive).
    """
    if name not in SETS:
        near = difflib.get_close_matches(name, SETS, 1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(SETS)}"
        raise UsageError(f"there is no data set {name!r} to fetch; {hint}")
    source, dest = SETS[name], Path(dest)
    folder, archive = dest / name, dest / source.url.rpartition("/")[2]
    if folder.is_dir() and any(folder.iterdir()):
        print(f"{folder} is there already; remove it to fetch it again", file=sys.stderr)
        return folder
    try:
        dest.mkdir(parents=True, exist_ok=True)
        _check_space(dest, source)
        _download(source, archive)
        _unpack(archive, folder)
    except OSError as error:  # requests' errors are handled where they arise
        raise DataError(f"{name} cannot be written to {dest}: {error.strerror or error}") from None
    archive.unlink()
    print(f"{folder}: unpacked; licence {source.licence}", file=sys.stderr)
    return folder


def _check_space(dest: Path, source: Source) -> None:
    """Archive and folder lie side by side for a while."""
    need, free = source.archive_bytes + source.unpacked_bytes, shutil.disk_usage(dest).free
    if free < need:
        raise DataError(
            f"{dest} has {free / 1e9:.1f} GB free, and {need / 1e9:.1f} GB are needed to unpack the set: name another "
            "folder"
        )


def _download(source: Source, archive: Path) -> None:
    """The archive with the right hash at ``archive``; one that is there with the right hash is kept."""
    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(
            source.url, f"sha256:{source.sha256}", archive.name, archive.parent, downloader=_resuming_download
        )
    except requests.RequestException as error:
        raise DataError(
            f"{source.url} cannot be downloaded ({_reason(error)}): check the connection and run the command again, it "
            "goes on where it stopped"
        ) from None
    except ValueError:  # pooch: the hash differs; it has removed what it got
        raise DataError(
            f"{source.url} gave a file whose SHA-256 is not {source.sha256}, and it was removed: it was altered or "
            "damaged, run the command again"
        ) from None


def _resuming_download(url: str, output_file: str, _pooch: object) -> None:
    """A downloader for pooch that keeps what an interrupted run received in ``NAME.part`` beside the archive."""
    part = Path(output_file).parent / (url.rpartition("/")[2] + ".part")
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        complete = have and response.headers.get("Content-Range") == f"bytes */{have}"
        if response.status_code == 416 and not complete:  # what is here is longer than the file: not a part of it
            part.unlink()
            return _resuming_download(url, output_file, _pooch)
        if not complete:
            response.raise_for_status()
            resumed = response.status_code == 206
            _receive(response, part, have if resumed else 0)
    shutil.move(part, output_file)


def _receive(response: requests.Response, part: Path, have: int) -> None:
    """Append the body to ``part`` from byte ``have`` on, with progress on stderr."""
    length = response.headers.get("Content-Length")
    total = have + int(length) if length else None
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    progress = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
    with progress, part.open("r+b" if have else "wb") as file:
        task = progress.add_task(part.stem, total=total, completed=have)
        file.seek(have)
        for chunk in response.iter_content(CHUNK_BYTES):
            file.write(chunk)
            progress.advance(task, len(chunk))


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack beside ``folder``, then rename. Members outside the folder, links out of it and devices are refused."""
    if not hasattr(tarfile, "data_filter"):
        raise DataError(
            "this Python's tarfile cannot refuse unsafe members: Python 3.11.4 or newer is needed to unpack"
        )
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(beside, filter="data")
        beside.chmod(0o755)  # mkdtemp gives 0700
        if folder.exists():
            folder.rmdir()  # empty, or fetch had returned
        beside.rename(folder)
    except tarfile.FilterError as error:
        raise DataError(f"{archive} is not safe to unpack, nothing was written: {error}") from None
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{archive} is not a complete tar archive ({error}): remove it and fetch it again") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _reason(error: requests.RequestException) -> str:
    """A network error in a few words."""
    if error.response is not None:
        return f"the server answered {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return f"no answer within {TIMEOUT_S} s"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    return "no connection" if isinstance(error, requests.ConnectionError) else type(error).__name__
