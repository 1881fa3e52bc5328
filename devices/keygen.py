"""``python -m devices keygen DIR``: a key pair to sign bundles with."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from toolkit.errors import EdgeAudioError, UsageError
from toolkit.signature import TRUST_VARIABLE, generate_key


def add_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("keygen", help="make a key pair to sign bundles with",
                                 description="Write DIR/NAME.key (private, mode 0600) and DIR/NAME.pub.")
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("--name", default="bundle", help="of the two files (default: %(default)s)")
    parser.add_argument("--comment", default="", help="kept in both files, for people")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    private, public, key_id = keygen(arguments.folder, arguments.name, arguments.comment)
    print(json.dumps({"key_id": key_id, "private": str(private), "public": str(public)}))
    print(f"keep {private} to yourself; put {public} into the folder that {TRUST_VARIABLE} names on each device",
          file=sys.stderr)


def keygen(folder: str | os.PathLike, name: str = "bundle", comment: str = "") -> tuple[Path, Path, str]:
    """Write a new key pair to ``folder``: (path of the private key, path of the public key, key id).

    UsageError if one of the files is there already, and then neither is touched; MissingPartError without a library.
    """
    folder = Path(folder)
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    if private.parent != folder or name.startswith("."):
        raise UsageError(f"key name is {name!a}, expected a plain file name; the folder is the other argument")
    key = generate_key(comment)
    texts = {private: (key.to_text(), 0o600), public: (key.public_key().to_text(), 0o644)}
    made: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, (text, mode) in texts.items():
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
                made.append(path)
                file.write(text)
    except OSError as error:
        for path in made:  # half a key pair is none
            path.unlink()
        if isinstance(error, FileExistsError) and folder.is_dir():
            raise UsageError(f"{error.filename}: exists, and no key is ever overwritten; give another --name") from None
        raise EdgeAudioError(f"{folder}: cannot write the keys ({error.strerror}); check the folder") from None
    return private, public, key.public_key().key_id
