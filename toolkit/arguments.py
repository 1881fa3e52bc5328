"""The command line of every program here: what makes no sense is one sentence, as every other error."""

from __future__ import annotations

import argparse
from typing import NoReturn

from .errors import UsageError


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print how the program is used, and exit."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`.")
