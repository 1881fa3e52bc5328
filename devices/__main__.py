"""``python -m devices COMMAND``: keys for bundles, and bundles for devices."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from devices import boards, deploy, fleet, keygen, keyring, publish, service
from toolkit.arguments import Parser
from toolkit.errors import EdgeAudioError

# modules: add_command(commands) names the subcommand and the function that runs it
COMMANDS = (boards, keygen, keyring, deploy, service, fleet, publish)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 1 failed, 2 misused."""
    parser = Parser(prog="python -m devices", description="Keys for bundles, and bundles for devices.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add_command(commands)
    try:
        arguments = parser.parse_args(argv)
        arguments.run(arguments)
    except EdgeAudioError as error:
        print(f"devices: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("devices: stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
