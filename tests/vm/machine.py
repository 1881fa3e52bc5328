"""A machine under QEMU: switched on, off, and cut from its power; reached by ssh, and by the product's own commands."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from arm_image import USER, CheckFailed, Image

from devices.ssh import ConnectionLost, Ssh
from toolkit.errors import DeployError

REPOSITORY = Path(__file__).resolve().parents[2]
# The guest's clock counts instructions, 1 ns each, about as a Pi 4 does them: where this machine is slow or busy, the
# guest's time goes slowly, too, and no block of audio is late for that. When the guest is idle, its time goes as ours.
ICOUNT = ("-icount", "shift=0,sleep=on", "-rtc", "clock=vm")
SLOW = 20  # at most: seconds here for one second there
BOOT_S, HALT_S, COMMAND_S = 60, 30, 600  # there
HOST = "10.0.2.2"  # this machine's loopback, as the guest sees it
READ_STATUS = "cat /run/edge-audio/status.json 2>/dev/null || echo null"


class Machine:
    """A copy of the image's disk and a QEMU that runs it. What it prints lies in ``folder``/console.log."""

    def __init__(self, image: Image, folder: Path):
        self._image, self._folder = image, folder
        self._disk, self._known_hosts = folder / "disk.ext4", folder / "known_hosts"
        subprocess.run(["cp", "--sparse=always", str(image.disk), str(self._disk)], check=True)
        self._qemu: subprocess.Popen | None = None
        self._ssh: Ssh | None = None
        self._log = (folder / "commands.log").open("w", encoding="utf-8")

    # --- power ------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Switch on, and wait for sshd and for the end of systemd's start. CheckFailed if they do not come."""
        port = _free_port()
        self._known_hosts.write_text(f"[127.0.0.1]:{port} {self._image.host_key}\n", "ascii")
        with (self._folder / "console.log").open("ab") as console:
            self._qemu = subprocess.Popen(self._command(port), stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        options = [f"UserKnownHostsFile={self._known_hosts}", "GlobalKnownHostsFile=/dev/null",
                   "StrictHostKeyChecking=yes", "IdentitiesOnly=yes", "IdentityAgent=none"]
        self._ssh = Ssh(f"{USER}@127.0.0.1", port, str(self._image.user_key), ["ConnectTimeout=5", *options])
        self._arguments = ["--host", f"{USER}@127.0.0.1", "--port", str(port), "--identity", str(self._image.user_key),
                           *(part for option in options for part in ("--ssh-option", option))]
        self.wait_for("sshd", self._answers, BOOT_S)
        self.run("systemctl is-system-running --wait >/dev/null || true")

    def _command(self, port: int) -> list[str]:
        return ["nice", "-n", "5", "qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a72", "-m", "1024", *ICOUNT,
                "-kernel", str(self._image.kernel), "-initrd", str(self._image.initramfs),
                "-append", "console=ttyAMA0 quiet", "-display", "none", "-monitor", "none", "-serial", "stdio",
                "-no-reboot", "-drive", f"if=none,id=disk,format=raw,cache=unsafe,file={self._disk}",
                "-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci",
                "-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22", "-device", "virtio-net-pci,netdev=net"]

    def _answers(self) -> bool:
        if self._qemu.poll() is not None:
            raise CheckFailed(f"qemu ended with status {self._qemu.returncode}; see {self._folder / 'console.log'}")
        try:
            return self._ssh.run("true").returncode == 0
        except ConnectionLost:
            self._ssh.close()
            return False

    def shut_down(self) -> None:
        """As a reboot does: services are stopped and the disk is unmounted; then QEMU ends (-no-reboot)."""
        with contextlib.suppress(ConnectionLost):
            self._ssh.run("sudo systemctl reboot")
        self._ssh.close()
        try:
            self._qemu.wait(SLOW * HALT_S)
        except subprocess.TimeoutExpired:
            raise CheckFailed(f"it did not shut down within {HALT_S} s") from None

    def cut_power(self) -> None:
        """Now. What the guest has not written to its disk by now is lost."""
        if self._qemu is not None and self._qemu.poll() is None:
            self._qemu.send_signal(signal.SIGKILL)
            self._qemu.wait()
        if self._ssh is not None:
            self._ssh.close()

    def close(self) -> None:
        self.cut_power()
        self._log.close()

    # --- inside -----------------------------------------------------------------------------------

    def run(self, script: str) -> str:
        """stdout of a shell script there that succeeded. CheckFailed if it did not, or the connection broke."""
        try:
            done = self._ssh.run(script)
        except DeployError as error:
            raise CheckFailed(str(error)) from None
        if done.returncode:
            raise CheckFailed(f"`{script}` ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}")
        return done.stdout.strip()

    def uptime_s(self) -> float:
        return float(self.run("cat /proc/uptime").split()[0])

    def show(self, property: str, unit: str = "edge-audio") -> str:
        """A property of a unit, as systemd has it."""
        return self.run(f"systemctl show --property={property} --value {unit}")

    def service(self) -> dict | None:
        """The status file of the service."""
        return json.loads(self.run(READ_STATUS))

    def linked(self, name: str) -> str | None:
        """The release that a link of the root names."""
        target = self.run(f"readlink /opt/edge-audio/{name} || true")
        return target.removeprefix("releases/") or None

    def wait_for(self, what: str, is_so, patience_s: float, pause_s: float = 0.5):
        """The first true answer of ``is_so``; CheckFailed if there is none in so many seconds of the guest."""
        deadline = time.monotonic() + SLOW * patience_s
        while not (answer := is_so()):
            if time.monotonic() > deadline:
                raise CheckFailed(f"{what}: not within {patience_s:g} s")
            time.sleep(pause_s)
        return answer

    # --- the product's commands -------------------------------------------------------------------

    def start(self, *arguments: str) -> subprocess.Popen:
        """``python -m devices`` with these arguments, for this machine."""
        print(f"\n$ python -m devices {' '.join(arguments)}", file=self._log, flush=True)
        return subprocess.Popen([sys.executable, "-m", "devices", *arguments, *self._arguments], cwd=REPOSITORY,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def devices(self, *arguments: str, status: int = 0) -> list[dict]:
        """The JSON lines of ``python -m devices``; CheckFailed if it ends with another status."""
        return self.end(self.start(*arguments), status)

    def end(self, process: subprocess.Popen, status: int = 0) -> list[dict]:
        """The JSON lines of what ``start`` started; CheckFailed if it ends with another status, or not at all."""
        try:
            out, err = process.communicate(timeout=SLOW * COMMAND_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise CheckFailed(f"`devices {process.args[3]}` did not end") from None
        print(out, err, f"status {process.returncode}", sep="\n", file=self._log, flush=True)
        if process.returncode != status:
            last = (err.strip().splitlines() or ["it said nothing"])[-1]
            raise CheckFailed(f"`devices {process.args[3]}` ended with {process.returncode}, expected {status}: {last}")
        return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
