"""Whose bundles a device takes: a folder of public keys, or of keyrings, brought there before anything is staged.

    FOLDER/*.pub                       these keys and no others; whoever deploys may replace them
    FOLDER/1/keyring.json  ...         keyrings (devices/keyring.py): the device takes only the versions that follow
"""

from __future__ import annotations

import base64
import hashlib
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

from devices.remote import Remote, Say
from toolkit.errors import ConfigError, DeployError
from toolkit.keyring import KEYRING, SIGNATURES, parse_keyring
from toolkit.signature import REVOKED, TrustedKeys, read_trusted_keys

LIST = """cd {root}/trust 2>/dev/null || exit 0
for file in *.pub revoked keyring.json; do [ -f "$file" ] && echo "$file $(base64 -w 0 "$file")"; done; true"""


@dataclass(frozen=True)
class Trust:
    """What a folder on this host says."""

    keys: TrustedKeys  # that may sign bundles
    files: dict[str, bytes]  # NAME.pub and revoked; {} if these are keyrings
    keyrings: tuple[tuple[bytes, bytes], ...] = ()  # (keyring.json, keyring.sig) of version 1, 2, ...

    def changes(self, remote: Remote) -> list[str]:
        """What becomes other on the device, one line each."""
        keys, present = _read_there(remote)
        before, after = ({key.key_id for key in each} for each in (keys, self.keys))
        lines = [f"trust: with the key {key_id}" for key_id in sorted(after - before)]
        lines += [f"trust: without the key {key_id}" for key_id in sorted(before - after)]
        version = _version(present)
        if self.keyrings and version < len(self.keyrings):
            lines.append(f"trust: version {len(self.keyrings)} of the keyring, present is {version or 'none'}")
        return lines

    def install(self, remote: Remote, say: Say) -> None:
        """Make the device trust this from now on; DeployError if it must not."""
        present = _read_there(remote)[1]
        if self.keyrings:
            for version, (keyring, signatures) in enumerate(self.keyrings[_version(present):], _version(present) + 1):
                say(f"trusting version {version} of the keyring")
                remote.ask("trust", stdin=keyring + signatures)
        elif KEYRING in present:
            raise DeployError(f"{remote.ssh.target}: trusts a keyring, which a folder of keys cannot replace; sign the "
                              f"next version (python -m devices keyring), or leave out --trust")
        elif present != self.files:
            say(f"trusting {', '.join(key.key_id for key in self.keys)}")
            _write_there(remote, self.files)


def read_trust(folder: Path) -> Trust:
    """The keys or keyrings in a folder; ConfigError if it holds neither."""
    versions = sorted((path for path in folder.glob(f"*/{KEYRING}") if path.parent.name.isdecimal()),
                      key=lambda path: int(path.parent.name))
    if versions:
        return _read_keyrings(folder, versions)
    keys = read_trusted_keys(folder)
    if not keys:
        raise ConfigError(f"{folder}: holds no key (*.pub); a device that trusts nobody takes no bundle")
    paths = [*folder.glob("*.pub"), *folder.glob(REVOKED)]
    return Trust(keys, {path.name: path.read_bytes() for path in paths})


def keys_there(remote: Remote) -> TrustedKeys:
    """The keys that the device trusts; DeployError if there are none yet."""
    keys = _read_there(remote)[0]
    if not keys:
        raise DeployError(f"{remote.ssh.target}: trusts nobody yet; name the folder of your public keys, or of your "
                          f"keyrings, with --trust (python -m devices keygen)")
    return keys


def _read_keyrings(folder: Path, versions: list[Path]) -> Trust:
    signed = [(path.read_bytes(), (path.parent / SIGNATURES).read_bytes()) for path in versions
              if (path.parent / SIGNATURES).exists()]  # the last may be a draft
    if not signed:
        raise ConfigError(f"{folder}: no version is signed; python -m devices keyring sign does it")
    last = parse_keyring(signed[-1][0], str(folder))
    keys = TrustedKeys((key.to_public_key() for key in last.bundle_keys), last.reasons())
    return Trust(keys, {}, tuple(signed))


def _version(files: dict[str, bytes]) -> int:
    """Of the keyring among these files; 0: there is none."""
    return parse_keyring(files[KEYRING]).version if KEYRING in files else 0


def _read_there(remote: Remote) -> tuple[TrustedKeys, dict[str, bytes]]:
    """The keys that the device trusts, and the files that say so."""
    lines = remote.must(LIST.format(root=shlex.quote(remote.root)), "reading its trusted keys").splitlines()
    files = {name: base64.b64decode(data) for name, _, data in (line.rpartition(" ") for line in lines)}
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / Path(name).name).write_bytes(data)
        return read_trusted_keys(folder), files


def _write_there(remote: Remote, files: dict[str, bytes]) -> None:
    """Replace ROOT/trust as a whole: a folder named by its content, then one rename of the link to it."""
    listing = "".join(f"{base64.b64encode(data).decode()} {name}\n" for name, data in sorted(files.items()))
    folder = f"trusts/keys-{hashlib.sha256(listing.encode()).hexdigest()[:16]}"
    remote.must(f"cd {shlex.quote(remote.root)} && rm -rf {folder}.new && mkdir -p {folder}.new && "
                f"while read -r data name; do printf %s \"$data\" | base64 -d > \"{folder}.new/$name\" || exit 1; done "
                f"&& rm -rf {folder} && mv {folder}.new {folder} && ln -sfn {folder} .trust.new && sync && "
                f"{{ [ -L trust ] || [ ! -e trust ] || rmdir trust; }} && mv -T .trust.new trust && sync",
                "installing the trusted keys", listing.encode())
