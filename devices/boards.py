"""``python -m devices list``: the device profiles, one JSON line each."""

from __future__ import annotations

import argparse
import json

from toolkit.profile import FOLDER, load_profile

SHOWN = ("name", "board", "architecture", "runtime", "transport")


def add_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("list", help="the device profiles", description=__doc__)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    for path in sorted(FOLDER.glob("*.yaml")):
        profile = load_profile(path)
        print(json.dumps({key: getattr(profile, key) for key in SHOWN}))
