"""What systemd is told (sd_notify(3)): a datagram to the socket that NOTIFY_SOCKET names, and nothing without one."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

FEED_S = 1.0  # at most between two feedings of the watchdog


class Notifier:
    """Sends states such as READY=1 to systemd.

    ``feed_s``: seconds between two WATCHDOG=1: half of what systemd waits (WATCHDOG_USEC), and one at most, so that the
    watchdog's time runs from the last audio and not from up to half of that time before it
    """

    def __init__(self, environment: Mapping[str, str] = os.environ):
        address = environment.get("NOTIFY_SOCKET", "")
        if address.startswith("@"):  # Linux's abstract sockets
            address = "\0" + address[1:]
        self._address = address if address[:1] in ("/", "\0") else ""
        self.feed_s = min(FEED_S, _watchdog_s(environment) / 2)

    def send(self, *states: str) -> bool:
        """Whether systemd has it now, or there is no systemd that waits for it. Never waits, for audio does not."""
        if not self._address:
            return True
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            try:
                sender.sendto("\n".join(states).encode(), self._address)
            except OSError:
                return False
        return True


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """The watchdog's time in seconds; infinity where there is none, or where it is another process's."""
    text, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    is_ours = not pid or pid == str(os.getpid())
    return int(text) / 1e6 if is_ours and text.isdecimal() and int(text) else float("inf")
