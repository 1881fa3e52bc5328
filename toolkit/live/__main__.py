"""python -m toolkit.live RELEASE_FOLDER: the service for the bundles and options of one release on a device."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ..__main__ import emit, say
from ..arguments import Parser
from ..errors import BundleError, DeployError, EdgeAudioError

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..ota.release import Release


def main(argv: list[str] | None = None) -> int:
    """The exit status: 1 failed, 2 misused. A service that a signal stops ends the process with status 0."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until the service has its own: there is nothing to end yet
    parser = Parser(prog="python -m toolkit.live", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RELEASE_FOLDER", help="holds release.json and bundles/")
    try:
        arguments = parser.parse_args(argv)
        run(arguments.folder)
    except EdgeAudioError as error:
        say(str(error))
        return error.exit_code
    except BrokenPipeError:
        say("standard output was closed; the service ends, for nobody reads its detections.")
        return 1


def run(folder: Path) -> NoReturn:
    """The service of the release in ``folder``. A link such as `current` is followed once, so that all is of one
    release even if the link moves meanwhile."""
    from .service import serve
    from .status import status_path

    folder = folder.resolve()
    release = read_release(folder)
    consumers = [lambda detection, stream: emit(json.dumps({"stream": stream, **detection.to_dict()}))]
    listen = release.listen
    serve(load_bundles(folder, release), consumers, say, device=listen.device, channel=listen.channel,
          threshold=listen.threshold, release=release.id, status_file=status_path())


def read_release(folder: Path) -> Release:
    """What release.json in ``folder`` says; DeployError if there is none, or not a right one."""
    from ..ota.release import parse_release

    path = folder / "release.json"
    try:
        return parse_release(path.read_bytes(), str(path))
    except OSError as error:
        raise DeployError(f"{path} cannot be read ({error.strerror}); deploy a release again.") from None


def load_bundles(folder: Path, release: Release) -> list[Bundle]:
    """The bundles of a release; BundleError for one that is not, byte for byte, what was staged.

    Signatures were checked when the release was staged. They are not checked again, because a key that is revoked later
    must keep new releases out, and not silence a device that starts again with what it has.
    """
    from ..bundle import load_bundle

    bundles = []
    for entry in release.bundles:
        path = folder / "bundles" / f"{entry.name}.eab"
        bundle = load_bundle(path, "off")
        if bundle.sha256 != entry.sha256:
            raise BundleError(f"{path} is not the file that was staged (sha256 {bundle.sha256[:12]}, expected "
                              f"{entry.sha256[:12]}); deploy the release again.")
        bundles.append(bundle)
    return bundles


if __name__ == "__main__":
    sys.exit(main())
