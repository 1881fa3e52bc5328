"""``python -m toolkit.ota COMMAND``: what ``edge-audio ota COMMAND`` is, from a wheel that nobody has installed."""

from __future__ import annotations

import sys

from toolkit.arguments import Parser
from toolkit.errors import EdgeAudioError
from toolkit.ota import command


def main(argv: list[str] | None = None, prog: str = "python -m toolkit.ota") -> int:
    """The exit status: 0 done, 1 failed, 2 misused."""
    parser = Parser(prog=prog, description=command.__doc__)
    command.add_commands(parser)
    try:
        arguments = parser.parse_args(argv)
        return arguments.run(arguments)
    except EdgeAudioError as error:
        command.say(str(error))
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
