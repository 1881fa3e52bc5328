"""``edge-audio ota COMMAND``: one JSON line on stdout, sentences on stderr; exit 0 done, 1 failed, 2 misused."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from toolkit.errors import EdgeAudioError, UsageError
from toolkit.ota import disk, fetch, recover, service, trust
from toolkit.ota.layout import DEFAULT_ROOT, Root
from toolkit.ota.pull import CHANNEL, Wish, pull
from toolkit.ota.receive import missing, receive
from toolkit.ota.release import MAX_BYTES, Release, parse_release
from toolkit.ota.runtime import make_runtime
from toolkit.ota.stage import stage
from toolkit.ota.trial import roll_back, try_release

ROOT_VARIABLE = "EDGE_AUDIO_ROOT"
HEALTH_S = 30.0

Answer = dict[str, Any]  # the JSON line; with a "reason" the command has failed


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Each sets ``run``, a function from the arguments to the exit status."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, answer: Callable[[Root, argparse.Namespace], Answer], help: str, changes: bool = True,
                reads: Callable[[], Any] | None = None) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.add_argument("--root", default=os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT,
                         help=f"the folder of all releases (default: ${ROOT_VARIABLE} or {DEFAULT_ROOT})")
        sub.set_defaults(run=functools.partial(_run, answer, changes, reads))
        return sub

    command("status", answer_status, "what runs, what is committed, and how the last trial ended", changes=False)
    command("missing", answer_missing, "what the release.json on stdin needs and this device lacks", changes=False,
            reads=read_plan)
    sub = command("receive", answer_receive, "append stdin to an upload")
    sub.add_argument("sha256", type=_hex(64), metavar="SHA256", help="of the whole")
    sub.add_argument("--size", type=int, required=True, help="of the whole, in bytes")
    sub.add_argument("--offset", type=int, default=0, help="bytes that are on the device already (default: 0)")
    command("runtime", answer_runtime, "make the environment that the release.json on stdin names", reads=read_plan)
    sub = command("stage", answer_stage, "check the release.json on stdin and put it beside the running one",
                  reads=read_plan)
    sub.add_argument("--allow-older", action="store_true", help="take versions below the floor")
    sub = command("try", answer_try, "run a staged release, and commit it if it proves healthy")
    sub.add_argument("release", type=_hex(16), metavar="ID")
    _health_option(sub)
    _health_option(command("rollback", answer_rollback, "try the release that was committed before"))
    command("recover", answer_recover, "go back to the committed release after a trial that was cut off", changes=False)
    command("clean", answer_clean, "remove what neither current, committed nor previous need")
    command("trust", answer_trust, "take the keyring.json on stdin, followed by its keyring.sig",
            reads=lambda: trust.read_pair(sys.stdin.buffer))
    sub = command("update", answer_update, "fetch the release that a published folder offers, and try it",
                  changes=False)
    sub.add_argument("url", metavar="URL", help="of the folder: https, http, or file:///PATH")
    sub.add_argument("--profile", metavar="NAME", help="of this board (default: that of the last time, or the only one "
                     "for its processor)")
    sub.add_argument("--channel", default=CHANNEL, metavar="NAME", help="that is followed (default: %(default)s)")
    sub.add_argument("--retry", action="store_true", help="try a release again that the device went back from")
    sub.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")
    _health_option(sub)


def _health_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--health-s", type=float, default=HEALTH_S, metavar="S",
                     help="to become healthy in, and then healthy for a tenth of it (default: %(default)g)")


def _run(answer: Callable[[Root, argparse.Namespace], Answer], changes: bool, reads: Callable[[], Any] | None,
         arguments: argparse.Namespace) -> int:
    """Runs a command and prints its answer: the exit status. Nobody waits for a host while the lock is held."""
    os.umask(0o022)  # the service, a user of its own, reads what we write
    root = Root(arguments.root)
    arguments.input = reads() if reads else None
    with disk.telling(root.path), recover.change(root, say) if changes else contextlib.nullcontext():
        result = answer(root, arguments)
    emit(result)
    return 1 if result.get("reason") else 0


def read_plan() -> Release:
    """The release.json on stdin."""
    return parse_release(sys.stdin.buffer.read(MAX_BYTES + 1))


def answer_status(root: Root, arguments: argparse.Namespace) -> Answer:
    try:
        _recover_if_free(root)
    except EdgeAudioError as error:  # it answers whatever the state of the device
        say(str(error))
    bundles = (root.releases / root.committed / "bundles").glob("*.eab") if root.committed else ()
    return {
        "root": str(root.path), "current": root.current, "committed": root.committed, "previous": root.previous,
        "is_trial": root.current != root.committed, "floor": root.floor(), "releases": root.staged(),
        "outcome": root.read_json(root.outcome_file), "index": root.read_json(root.index_file),
        "service": service.read_status(), "free_bytes": disk.free_bytes(root.path),
        "machine": os.uname().machine, "python": ".".join(map(str, sys.version_info[:3])),
        **trust.report(root.path, bundles),
    }


def answer_missing(root: Root, arguments: argparse.Namespace) -> Answer:
    _recover_if_free(root)
    return {"missing": missing(root, arguments.input)}


def answer_receive(root: Root, arguments: argparse.Namespace) -> Answer:
    return receive(root, arguments.sha256, arguments.size, arguments.offset, sys.stdin.fileno())


def answer_runtime(root: Root, arguments: argparse.Namespace) -> Answer:
    return {"runtime": arguments.input.runtime.key, "python": str(make_runtime(root, arguments.input.runtime))}


def answer_stage(root: Root, arguments: argparse.Namespace) -> Answer:
    return {"release": arguments.input.id, "is_new": stage(root, arguments.input, arguments.allow_older, say)}


def answer_try(root: Root, arguments: argparse.Namespace) -> Answer:
    return try_release(root, arguments.release, _health_s(arguments), say)


def answer_rollback(root: Root, arguments: argparse.Namespace) -> Answer:
    return roll_back(root, _health_s(arguments), say)


def answer_recover(root: Root, arguments: argparse.Namespace) -> Answer:
    is_recovered = _recover_if_free(root)
    return {"current": root.current, "committed": root.committed, "is_recovered": is_recovered}


def answer_clean(root: Root, arguments: argparse.Namespace) -> Answer:
    return {"removed": recover.clean(root), "free_bytes": disk.free_bytes(root.path)}


def answer_trust(root: Root, arguments: argparse.Namespace) -> Answer:
    return trust.accept(root.path, *arguments.input)


def answer_update(root: Root, arguments: argparse.Namespace) -> Answer:
    wish = Wish(_health_s(arguments), arguments.channel, arguments.profile, arguments.retry, arguments.dry_run)
    source = fetch.Source(arguments.url)
    with contextlib.nullcontext() if wish.dry_run else recover.change(root, say):
        return pull(root, source, wish, say)


def _recover_if_free(root: Root) -> bool:
    """Recovery, unless somebody holds the lock or nothing was ever installed: True if the device had to go back."""
    if not root.path.exists():
        return False
    with root.lock(wait_s=0) as is_held:
        return is_held and recover.recover(root, say)


def _health_s(arguments: argparse.Namespace) -> float:
    if not 0.1 <= arguments.health_s <= 3600:
        raise UsageError(f"--health-s is {arguments.health_s}, expected 0.1 to 3600.")
    return arguments.health_s


def _hex(length: int) -> Callable[[str], str]:
    """A type for argparse; it becomes part of a path."""
    def check(text: str) -> str:
        if not re.fullmatch(rf"[0-9a-f]{{{length}}}", text):
            raise argparse.ArgumentTypeError(f"{text!a} is not {length} lower-case hex digits")
        return text

    return check


def say(text: str) -> None:
    """One sentence for a person, if there still is one at the other end."""
    with contextlib.suppress(OSError):
        print(f"edge-audio: {text}", file=sys.stderr, flush=True)


def emit(answer: Answer) -> None:
    """One line for a program; a host that has gone reads outcome.json later."""
    try:
        print(json.dumps(answer), flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries once more at its end
