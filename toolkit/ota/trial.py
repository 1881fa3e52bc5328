"""A release on trial: the service runs it, and it is committed if it proves healthy; else the device goes back."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from toolkit.errors import DeployError
from toolkit.manifest import canonical_json
from toolkit.ota import disk, health, service
from toolkit.ota.layout import Root
from toolkit.ota.recover import recover
from toolkit.ota.release import version_order

ATTEMPTS, PAUSE_S = 3, 1.0  # to go back

def try_release(root: Root, release_id: str, health_s: float, say: Callable[[str], None]) -> dict[str, Any]:
    """{release, committed, is_noop, reason}: tried and committed, or gone back from with the reason."""
    root.release(release_id)
    if release_id == root.committed and health.problem(service.read_status(), release_id) is None:
        return {"release": release_id, "committed": True, "is_noop": True, "reason": None}
    with undisturbed() as must_stop:
        reason = _trial(root, release_id, health_s, must_stop)
        is_committed = root.committed == release_id  # the link says it, whatever happened after it was renamed
        if reason is not None:
            say(f"{release_id} is {'committed, but' if is_committed else 'not committed:'} {reason}")
        if not is_committed:
            go_back_surely(root, say)
        outcome = {"release": release_id, "committed": is_committed, "reason": reason, "time": int(time.time())}
        try:
            disk.write_whole(root.outcome_file, canonical_json(outcome))
        except DeployError as error:
            say(str(error))
    return {"release": release_id, "committed": is_committed, "is_noop": False, "reason": reason}


def roll_back(root: Root, health_s: float, say: Callable[[str], None]) -> dict[str, Any]:
    """The trial of the release that was committed before, whatever the floor says."""
    if root.previous is None:
        raise DeployError(f"{root.path}: no release was committed before this one; deploy another one.")
    return try_release(root, root.previous, health_s, say)


def go_back_surely(root: Root, say: Callable[[str], None]) -> None:
    """``recover``, again if the disk refuses: a device must not be left with what has just failed its trial."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            recover(root, say)
            return
        except DeployError as error:
            if attempt == ATTEMPTS:
                raise
            say(str(error))
            time.sleep(PAUSE_S)


def _trial(root: Root, release_id: str, health_s: float, must_stop: Callable[[], str | None]) -> str | None:
    """From the switch to the commit; a sentence if it did not come to that."""
    before = service.read_status()
    try:
        disk.remove(root.outcome_file)  # none: the trial goes on, or its end came suddenly
        if root.committed:
            disk.link_to(root.link("back"), f"releases/{root.committed}")  # going back is then one rename
        disk.link_to(root.link("current"), f"releases/{release_id}")
        service.systemctl("restart")
        reason = health.wait_until_healthy(release_id, before, health_s, must_stop)
        if reason is None:
            commit(root, release_id)
    except DeployError as error:
        reason = str(error)
    except Exception as error:  # whatever it is, the device goes back
        reason = f"the trial failed ({error!r})."
    return reason


def commit(root: Root, release_id: str) -> None:
    """One rename. What must be true after it is on the disk before it."""
    committed = root.committed
    if committed == release_id:
        return
    floor, versions = root.floor(), root.release(release_id).versions
    if any(name not in versions or version_order(versions[name]) < version_order(lowest)
           for name, lowest in floor.items()):
        disk.write_whole(root.floor_file, canonical_json(floor))  # else the floor would sink with `committed`
    if committed:
        disk.prepare_link(root.link("previous"), f"releases/{committed}")
    disk.link_to(root.link("committed"), f"releases/{release_id}")
    if committed:
        disk.put_in_place(root.link("previous"))  # `recover` does it if we do not come to it


@contextmanager
def undisturbed() -> Iterator[Callable[[], str | None]]:
    """A dropped connection (SIGHUP) is ignored; SIGTERM and SIGINT end the health gate, and are too late for a commit.

    Yields a function: the reason to stop, None if there is none.
    """
    received: list[int] = []
    handlers = {signal.SIGHUP: signal.SIG_IGN, signal.SIGTERM: lambda number, _: received.append(number),
                signal.SIGINT: lambda number, _: received.append(number)}
    old = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield lambda: f"the trial was stopped by {signal.Signals(received[0]).name}." if received else None
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
