"""``edge-audio update URL``: a device behind NAT fetches its release from a web server, or a stick, and tries it.

    URL/keyrings/N.json, N.sig -> URL/index.json, index.sig -> URL/blobs/SHA256 -> runtime -> stage -> try -> clean

The server is believed in nothing: `python -m devices publish` signs the index with a bundle key, the index names every
file by its SHA-256 and size, and it is this device that holds it against ROOT/trust, with the code of the release that
it has committed. From ``runtime`` on all is as if a host had sent the same release. Whatever goes wrong, the device
runs what it ran, and the next call goes on where this one ended.

A release is tried once: if the device went back from it, or its owner did so later, it stays there until the index
offers another one, or the same one anew.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from toolkit.errors import DeployError
from toolkit.keyring import MAX_KEYRING_BYTES, MAX_SIGNATURES_BYTES, Keyring, check_next
from toolkit.ota import disk
from toolkit.ota.fetch import Absent, Source, Unreachable
from toolkit.ota.index import (
    INDEX,
    MAX_INDEX_BYTES,
    MAX_SIGNATURE_BYTES,
    SIGNATURE,
    Index,
    Offer,
    Taken,
    Trial,
    check_index,
    follows,
    last_taken,
    remember,
)
from toolkit.ota.layout import Root
from toolkit.ota.receive import missing, receive
from toolkit.ota.recover import clean
from toolkit.ota.runtime import make_runtime
from toolkit.ota.stage import check_floor, stage
from toolkit.ota.trial import try_release
from toolkit.ota.trust import accept, read_keyring
from toolkit.signature import TrustedKeys, read_trusted_keys

CHANNEL = "stable"
MAX_ATTEMPTS = 3  # at a release whose trials are cut off: it may have been the power, but also the release
ARCHITECTURES = {"x86_64": "x86-64", "aarch64": "aarch64", "armv7l": "armv7", "armv8l": "armv7"}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wish:
    """Options of the command."""

    health_s: float
    channel: str = CHANNEL
    profile: str | None = None  # None: the one of the last time, or the only one for this machine
    retry: bool = False  # also a release that was tried
    dry_run: bool = False  # writes nothing


def pull(root: Root, source: Source, wish: Wish, say: Say) -> dict[str, Any]:
    """{channel, index_version, profile, release, committed, is_noop, received_bytes, missing_bytes, skipped, reason}.

    ``skipped`` says why a release that is offered is not tried again, ``reason`` why the device went back from it. The
    caller holds the lock, unless it is a dry run. Every other trouble is an EdgeAudioError.
    """
    present, keys = follow_keyrings(root, source, wish, say)
    index, taken = take_index(root, source, wish, present, keys)
    name = choose_profile(index, wish.profile or taken.profile)
    offer, taken = index.profiles[name], replace(taken, profile=name)
    release = offer.release
    is_committed = release.id == root.committed
    if is_committed:  # whoever brought it: if the owner goes back from it, that is obeyed, too
        taken = replace(taken, trial=_committed(offer))
    if not wish.dry_run:
        remember(root, wish.channel, taken)
    skipped = None if is_committed or wish.retry else _skip(taken.trial, offer)
    answer = {"channel": wish.channel, "index_version": index.version, "profile": name, "release": release.id,
              "committed": is_committed, "is_noop": is_committed or skipped is not None, "received_bytes": 0,
              "missing_bytes": 0, "skipped": skipped, "reason": None}
    if skipped:
        say(f"{skipped}; --retry tries it again")
    if answer["is_noop"]:
        return answer
    check_floor(root, release, False, say)  # before anything is fetched for it
    lacking = {item["sha256"]: item["received_bytes"] for item in missing(root, release)}
    n_bytes = sum(max(0, index.blobs[digest] - there) for digest, there in lacking.items())
    if wish.dry_run:
        say(f"would fetch {n_bytes} bytes, and try {', '.join(f'{b.name} {b.version}' for b in release.bundles)}")
        return answer | {"missing_bytes": n_bytes}
    for digest, there in lacking.items():
        fetch_blob(root, source, digest, index.blobs[digest], there, say)
    make_runtime(root, release.runtime)
    stage(root, release, False, say)
    return answer | {"received_bytes": n_bytes} | _try(root, wish, taken, offer, say)


# --- what is offered ------------------------------------------------------------------------------


def follow_keyrings(root: Root, source: Source, wish: Wish, say: Say) -> tuple[Keyring | None, TrustedKeys]:
    """Take the keyrings that follow the present one, if there is one: (the last, keys whose index is taken).

    They vouch for themselves, so what they revoke is revoked whatever comes after. The first keyring, which nothing
    vouches for, never comes this way.
    """
    present = read_keyring(root.path)
    if present is None:
        if not root.trust.is_dir():
            raise DeployError(f"{root.path}: trusts nobody yet; deploy to this device over SSH first, with --trust.")
        return None, read_trusted_keys(root.trust)
    while True:
        path = f"keyrings/{present.version + 1}"
        try:
            keyring = source.read(f"{path}.json", MAX_KEYRING_BYTES)
        except Absent:
            break
        signatures = source.read(f"{path}.sig", MAX_SIGNATURES_BYTES)
        present = check_next(keyring, signatures, present, f"{source.url}/{path}.json")
        if not wish.dry_run:
            accept(root.path, keyring, signatures)
        say(f"version {present.version} of the keyring {'would be' if wish.dry_run else 'is'} trusted from now on")
    return present, TrustedKeys((key.to_public_key() for key in present.bundle_keys), present.reasons())


def take_index(root: Root, source: Source, wish: Wish, present: Keyring | None,
               keys: TrustedKeys) -> tuple[Index, Taken]:
    """The index, signed, of the channel, and not older than the last; and what is to be remembered of it."""
    signature = source.read(SIGNATURE, MAX_SIGNATURE_BYTES)
    data = source.read(INDEX, MAX_INDEX_BYTES)
    where = f"{source.url}/{INDEX}"
    index, signed_by = check_index(data, signature, keys, source.url)
    if index.channel != wish.channel:
        raise DeployError(f"{where}: channel is {index.channel}, expected {wish.channel}; correct the URL, or follow "
                          f"the other one on purpose (--channel).")
    if present is not None and present.version < (index.keyring or 0):
        raise DeployError(f"{where}: was published with version {index.keyring} of the keyring, but "
                          f"{source.url}/keyrings has none after {present.version}; publish them, too (--trust).")
    return index, follows(data, index, signed_by, last_taken(root, wish.channel), keys.revoked, where)


def choose_profile(index: Index, name: str | None) -> str:
    """``name``, or the only one for this machine; DeployError if it is not clear which, or not for this machine."""
    machine = platform.machine() if sys.maxsize > 2**32 else "armv7l"  # a 32-bit system may run on a 64-bit kernel
    fitting = [key for key, offer in index.profiles.items() if offer.architecture == ARCHITECTURES.get(machine)]
    if name in fitting:
        return name
    if name is None and len(fitting) == 1:
        return fitting[0]
    found = f"{len(fitting)} profiles" if name is None else f"no profile {name!a}"
    offered = ", ".join(f"{key} ({offer.architecture})" for key, offer in sorted(index.profiles.items())) or "none"
    raise DeployError(f"the index has {found} for this machine, an {machine}, but {offered}; name one that fits with "
                      f"--profile, or publish one.")


def _is_of(trial: Trial | None, offer: Offer) -> bool:
    return trial is not None and (trial.release, trial.since) == (offer.release.id, offer.since)


def _skip(trial: Trial | None, offer: Offer) -> str | None:
    """Why the release is not tried (again); None: it is."""
    if trial is None or not _is_of(trial, offer):
        return None
    if not trial.is_over:
        return (f"{trial.release} was tried {trial.attempts} times, and each trial was cut off, as if the device had "
                f"crashed") if trial.attempts >= MAX_ATTEMPTS else None
    if trial.reason is None:
        return f"{trial.release} was committed, and the device was brought back from it since"
    return f"{trial.release} was tried, and the device went back: {trial.reason.rstrip('.')}"


def _committed(offer: Offer) -> Trial:
    return Trial(offer.release.id, offer.since, 0, True, None)


# --- taking it ------------------------------------------------------------------------------------


def fetch_blob(root: Root, source: Source, digest: str, size: int, there: int, say: Say) -> None:
    """The bytes that are missing, through the same gate as those that a host sends. A cut is mended while it gets on.

    Unreachable if nothing more comes; what came is kept. DeployError if more came, or others.
    """
    path = f"blobs/{digest}"
    if there > size:
        disk.remove(root.incoming / f"{digest}.part")
        there = 0
    say(f"fetching {digest[:16]}, {size - there} of {size} bytes")
    answer = _append(root, digest, size, there, b"")
    while not answer["is_complete"]:
        before = answer["received_bytes"]
        trouble = Unreachable(f"{source.url}/{path}: ended after {before} of {size} bytes; try again, it goes on "
                              f"there.")
        try:
            for piece in source.pieces(path, before):
                answer = _append(root, digest, size, answer["received_bytes"], piece)
                if answer["is_complete"]:
                    break
        except Unreachable as error:
            trouble = error
        if not answer["is_complete"] and answer["received_bytes"] == before:
            raise trouble


def _append(root: Root, digest: str, size: int, there: int, data: bytes) -> dict[str, Any]:
    """``receive`` reads a descriptor, as it is given by ssh."""
    with open(os.memfd_create("piece"), "w+b", buffering=0) as file:
        file.write(data)
        file.seek(0)
        return receive(root, digest, size, there, file.fileno())


def _try(root: Root, wish: Wish, taken: Taken, offer: Offer, say: Say) -> dict[str, Any]:
    """{committed, reason}. The attempt is on the disk before it begins: what crashes the device must end some day."""
    release_id = offer.release.id
    attempts = taken.trial.attempts if taken.trial and _is_of(taken.trial, offer) and not wish.retry else 0
    trial = Trial(release_id, offer.since, attempts + 1, False, None)
    remember(root, wish.channel, replace(taken, trial=trial))
    outcome = try_release(root, release_id, wish.health_s, say)
    committed, reason = outcome["committed"], outcome["reason"]
    if committed:
        remember(root, wish.channel, replace(taken, trial=_committed(offer)))
        clean(root)
    elif not reason.startswith("the trial was stopped by "):  # as by a shutdown, which was not its fault
        remember(root, wish.channel, replace(taken, trial=replace(trial, is_over=True, reason=reason)))
    return {"committed": committed, "reason": reason}
