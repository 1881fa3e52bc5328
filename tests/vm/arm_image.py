"""A Debian for arm64 that boots in QEMU: kernel, initramfs and disk, made once from Debian's packages.

    mmdebstrap -> debian.tar -+-> vmlinuz, host_key.pub, initramfs (busybox, and the modules that reach the disk)
    tests/vm/guest, a key ----+-> disk.ext4

Packages are installed by their own arm64 programs, under qemu-user by way of binfmt_misc. All but the initramfs is
Debian's: `update-initramfs` would take very long under qemu-user, and this one starts sooner.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

GUEST = Path(__file__).parent / "guest"  # files of ours in the image
SUITE = "bookworm"
PACKAGES = ("systemd-sysv", "udev", "dbus", "kmod", "openssh-server", "sudo", "python3", "python3-venv",
            "libportaudio2", "alsa-utils", "busybox-static", "linux-image-arm64")
EXCLUDED = ("doc", "man", "locale")
USER = "pi"
DISK_BYTES = 3 << 30
MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")  # to reach the disk; with what these need
TOOLS = {"mmdebstrap": "mmdebstrap", "arch-test": "arch-test", "qemu-aarch64-static": "qemu-user-static",
         "qemu-system-aarch64": "qemu-system-arm", "mke2fs": "e2fsprogs", "fakeroot": "fakeroot",
         "ssh-keygen": "openssh-client", "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu"}
BINFMT = "/proc/sys/fs/binfmt_misc"
NO_BINFMT = (f"this machine's kernel does not start arm64 programs; as root: mount -t binfmt_misc binfmt_misc {BINFMT} "
             f"and then cat /usr/lib/binfmt.d/qemu-aarch64.conf > {BINFMT}/register")
INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs devtmpfs /dev
for module in {modules}; do /bin/busybox insmod /modules/$module; done
until [ -b /dev/vda ]; do /bin/busybox sleep 0.1; done
/bin/busybox mount -t ext4 /dev/vda /root
exec /bin/busybox switch_root /root /sbin/init
"""
MAKE_DISK = f"""set -e
root=$5.root
mkdir "$root"
tar -C "$root" -xf "$1"
cp -R "$2/." "$root"
ln -s ../sound.service "$root/etc/systemd/system/multi-user.target.wants/"
ln -s /lib/systemd/system/systemd-networkd.service "$root/etc/systemd/system/multi-user.target.wants/"
for timer in apt-daily apt-daily-upgrade; do ln -s /dev/null "$root/etc/systemd/system/$timer.timer"; done
echo device > "$root/etc/hostname"
echo 127.0.0.1 localhost device > "$root/etc/hosts"
install -m 644 "$4" "$root/srv/scene.wav"
install -D -m 644 "$3" "$root/home/{USER}/.ssh/authorized_keys"
chown -R 1000:1000 "$root/home/{USER}"
mke2fs -q -F -t ext4 -d "$root" "$5" "$6"
rm -rf "$root"
"""
AS_ROOT = () if os.geteuid() == 0 else ("fakeroot",)  # for the owners of files in the image
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class CheckFailed(Exception):
    """One sentence."""


@dataclass(frozen=True)
class Image:
    """What QEMU starts, and the keys of its sshd."""

    folder: Path

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initramfs(self) -> Path:
        return self.folder / "initramfs"

    @property
    def disk(self) -> Path:
        """As it was made; whoever boots it takes a copy."""
        return self.folder / "disk.ext4"

    @property
    def user_key(self) -> Path:
        return self.folder / "user_key"

    @property
    def host_key(self) -> str:
        return (self.folder / "host_key.pub").read_text("ascii").strip()


def require_tools() -> None:
    """CheckFailed with all that is missing, before anything is made."""
    missing = sorted({package for tool, package in TOOLS.items() if not shutil.which(tool, path=PATH)})
    if missing:
        raise CheckFailed(f"some programs are missing: sudo apt install {' '.join(missing)}")


def make_image(cache: Path, scene: Path, say: Callable[[str], None]) -> Image:
    """The image in ``cache``; what is there already, of the same recipe, is not made again."""
    debian, image = cache / "debian.tar", Image(cache / "image")
    if not _is_made(debian, _packages()):
        if subprocess.run(["arch-test", "arm64"], capture_output=True).returncode:
            raise CheckFailed(NO_BINFMT)
        _make(debian, _packages(), _install_debian, say, "some minutes")
    if not _is_made(image.folder, recipe := _recipe(scene)):
        _make(image.folder, recipe, lambda path: _make_image(debian, Image(path), scene), say, "half a minute")
    return image


def _is_made(path: Path, recipe: str) -> bool:
    written = path.with_suffix(".recipe")
    return path.exists() and written.is_file() and written.read_text("ascii") == recipe


def _make(path: Path, recipe: str, make: Callable[[Path], None], say: Callable[[str], None], how_long: str) -> None:
    """``path`` by ``make``, whole or not at all."""
    say(f"making {path} (once, {how_long})")
    started, unfinished = time.monotonic(), path.with_name(f"unfinished-{path.name}")
    path.with_suffix(".recipe").unlink(missing_ok=True)
    _run("rm", "-rf", str(path), str(unfinished))
    path.parent.mkdir(parents=True, exist_ok=True)
    make(unfinished)
    unfinished.rename(path)
    path.with_suffix(".recipe").write_text(recipe, "ascii")
    say(f"made it in {time.monotonic() - started:.0f} s")


def _packages() -> str:
    return json.dumps([SUITE, PACKAGES, USER, EXCLUDED])


def _recipe(scene: Path) -> str:
    made_of = [_packages(), MODULES, INIT, MAKE_DISK, DISK_BYTES]
    for path in (scene, *sorted(path for path in GUEST.rglob("*") if path.is_file())):
        made_of.append([path.name, hashlib.sha256(path.read_bytes()).hexdigest()])
    return json.dumps(made_of)


def _run(*command: str, **options) -> None:
    """CheckFailed with what the program said last."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": PATH, **options})
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()[-1:]
        raise CheckFailed(f"{command[0]} ended with status {done.returncode}: {' '.join(errors)}")


def _install_debian(path: Path) -> None:
    """debian.tar: the packages, and a user."""
    _run("nice", "-n", "5", "mmdebstrap", "--variant=minbase", "--architectures=arm64",
         "--setup-hook=sed -i '/-updates\\|-security/d' \"$1\"/etc/apt/sources.list",  # the point release is enough
         *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in EXCLUDED), f"--include={','.join(PACKAGES)}",
         f'--customize-hook=chroot "$1" useradd --create-home --shell /bin/bash --groups systemd-journal {USER}',
         SUITE, str(path), INITRD="No")  # read by the kernel's package


def _make_image(debian: Path, image: Image, scene: Path) -> None:
    image.folder.mkdir()
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "check-vm", "-f", str(image.user_key))
    _unpack(debian, image)
    arguments = (debian, GUEST, f"{image.user_key}.pub", scene, image.disk, f"{DISK_BYTES >> 10}k")
    _run(*AS_ROOT, "sh", "-c", MAKE_DISK, "sh", *map(str, arguments))


def _unpack(debian: Path, image: Image) -> None:
    """Kernel, initramfs and the public key of sshd."""
    with tarfile.open(debian) as archive:
        members = {str(PurePosixPath("/") / member.name): member for member in archive if member.isfile()}

        def read(path: str) -> bytes:
            return archive.extractfile(members[path]).read()

        (kernel,) = (path for path in members if path.startswith("/boot/vmlinuz-"))
        image.kernel.write_bytes(read(kernel))
        image.folder.joinpath("host_key.pub").write_bytes(read("/etc/ssh/ssh_host_ed25519_key.pub"))
        (table,) = (path for path in members if path.endswith("/modules.dep"))
        needed = module_order(read(table).decode(), MODULES)
        files = {f"modules/{PurePosixPath(path).name}": read(str(PurePosixPath(table).parent / path))
                 for path in needed}
        files["bin/busybox"] = read("/bin/busybox" if "/bin/busybox" in members else "/usr/bin/busybox")
        files["init"] = INIT.format(modules=" ".join(PurePosixPath(path).name for path in needed)).encode()
    image.initramfs.write_bytes(make_cpio(("dev", "root", "bin", "modules"), files))


def module_order(table: str, names: tuple[str, ...]) -> list[str]:
    """Paths of these modules and of all that they need, each after what it needs; ``table``: modules.dep."""
    rows = {path: needed.split() for path, _, needed in (line.partition(":") for line in table.splitlines())}
    by_name = {PurePosixPath(path).name.split(".")[0].replace("-", "_"): path for path in rows}
    order: dict[str, None] = {}
    for name in names:
        if name not in by_name:
            continue  # it is a part of the kernel
        for path in (*reversed(rows[by_name[name]]), by_name[name]):  # depmod: the deepest comes last
            order.setdefault(path)
    return list(order)


def make_cpio(folders: tuple[str, ...], files: dict[str, bytes]) -> bytes:
    """An archive as the kernel unpacks it (format newc); all files may be executed."""
    entries = [*((name, 0o040755, b"") for name in folders), *((name, 0o100755, data) for name, data in files.items()),
               ("TRAILER!!!", 0, b"")]
    return b"".join(_cpio_entries(entries))


def _cpio_entries(entries: list[tuple[str, int, bytes]]) -> Iterator[bytes]:
    for number, (name, mode, data) in enumerate(entries, 1):
        # inode, mode, uid, gid, links, mtime, size, device (2), device node (2), length of the name, checksum
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % value for value in fields) + name.encode() + b"\0"
        yield head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
