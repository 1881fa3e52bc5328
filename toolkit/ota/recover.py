"""Going back to what is committed, after whatever was cut off; and removing what nothing needs.

``recover`` and the shell script ``boot`` are twins: what the links say afterwards is the same. A test holds them to it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from toolkit.errors import DeployError
from toolkit.ota import disk, service
from toolkit.ota.layout import Root


@contextmanager
def change(root: Root, say: Callable[[str], None]) -> Iterator[None]:
    """The lock is held and the device is whole; DeployError if somebody else holds the lock."""
    root.make()
    with root.lock() as is_held:
        if not is_held:
            raise DeployError(f"{root.path}: another change is under way; wait for its end (edge-audio ota status).")
        recover(root, say)
        yield


def recover(root: Root, say: Callable[[str], None]) -> bool:
    """Whoever holds the lock begins with this. True if the device had to go back.

    A service that cannot be restarted is told with ``say``: the links are right, and its next start obeys them.
    """
    _finish_previous(root)
    sweep(root)  # first, for the disk may be full
    is_back = go_back(root)
    running = (service.read_status() or {}).get("release")
    if is_back or running not in (None, root.committed):
        try:
            service.systemctl("restart" if root.committed else "stop")
        except DeployError as error:
            say(f"went back to {root.committed or 'no release'}, but {error}")
    return is_back


def go_back(root: Root) -> bool:
    """``current`` is what ``committed`` is; True if it was not."""
    committed = root.committed
    if root.current == committed:
        return False
    if committed is None:
        disk.remove(root.link("current"))
    else:
        if root.linked("back") != committed:  # else it was made before the trial, while there was room on the disk
            disk.link_to(root.link("back"), f"releases/{committed}")
        disk.rename(root.link("back"), root.link("current"))
    return True


def _finish_previous(root: Root) -> None:
    """A commit prepares ``previous`` first and puts it in place last: here, if it was cut off between."""
    prepared = disk.new_name(root.link("previous"))
    if prepared.is_symlink() and os.path.basename(os.readlink(prepared)) != root.committed:
        disk.put_in_place(root.link("previous"))


def sweep(root: Root) -> None:
    """Removes what was cut off half made: it has no name that counts."""
    for folder in (root.path, root.blobs, root.releases, root.runtimes):
        for path in disk.leftovers(folder):
            disk.remove(path)
    for path in root.runtimes.glob("[!.]*"):
        if not root.is_ready(path.name):
            disk.remove(path)


def clean(root: Root) -> dict[str, list[str]]:
    """Removes releases, runtimes, blobs and uploads that neither current, committed nor previous need: their names."""
    kept = {root.current, root.committed, root.previous} & {*root.staged()}
    releases = [root.release(name) for name in kept]
    runtimes = {release.runtime.key for release in releases}
    blobs = {blob for release in releases for blob in release.blobs}
    removed: dict[str, list[str]] = {}
    for folder, needed in ((root.releases, kept), (root.runtimes, runtimes), (root.blobs, blobs), (root.incoming, ())):
        doomed = sorted(path for path in folder.iterdir() if path.name not in needed)
        for path in doomed:
            disk.remove(path)
        removed[folder.name] = [path.name for path in doomed]
    return removed
