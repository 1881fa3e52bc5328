"""What `make check-vm` boots from, as far as it needs no QEMU: the initramfs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "vm"
sys.path.append(str(FOLDER))

import arm_image  # noqa: E402

TABLE = """\
kernel/fs/ext4/ext4.ko: kernel/fs/mbcache.ko kernel/fs/jbd2/jbd2.ko kernel/lib/crc16.ko
kernel/fs/jbd2/jbd2.ko: kernel/lib/crc16.ko
kernel/fs/mbcache.ko:
kernel/lib/crc16.ko:
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio-ring.ko.xz
kernel/drivers/virtio/virtio-ring.ko.xz:
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio-ring.ko.xz
"""


def test_modules_come_after_what_they_need():
    """depmod lists all that a module needs, also at second hand, the deepest last."""
    order = arm_image.module_order(TABLE, ("virtio_blk", "ext4", "virtio_ring"))
    needs = {path: needed.split() for path, needed in (line.split(":") for line in TABLE.splitlines())}
    assert sorted(order) == sorted(needs)
    assert all(order.index(each) < order.index(path) for path in order for each in needs[path])


def test_a_module_that_is_built_into_the_kernel_is_left_out():
    assert arm_image.module_order(TABLE, ("virtio_pci",)) == []


def test_the_archive_reads_back():
    """As the kernel reads it (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    data = arm_image.make_cpio(("bin",), {"bin/busybox": b"program", "init": b"#!"})
    found, start = {}, 0
    while True:
        assert data[start:start + 6] == b"070701" and start % 4 == 0
        field = [int(data[at:at + 8], 16) for at in range(start + 6, start + 110, 8)]
        mode, n_bytes, n_name = field[1], field[6], field[11]
        name = data[start + 110:start + 110 + n_name]
        assert name.endswith(b"\0")
        content = start + (110 + n_name + 3) // 4 * 4
        start = content + (n_bytes + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            assert start == len(data)
            break
        found[name[:-1].decode()] = oct(mode), data[content:content + n_bytes]
    assert found == {"bin": ("0o40755", b""), "bin/busybox": ("0o100755", b"program"), "init": ("0o100755", b"#!")}


def test_programs_that_are_missing_are_named_with_their_packages(monkeypatch):
    monkeypatch.setattr(arm_image, "PATH", "/nowhere")
    with pytest.raises(arm_image.CheckFailed, match="sudo apt install .*mmdebstrap.*qemu-system-arm"):
        arm_image.require_tools()


def test_the_disk_is_made_by_a_script_that_a_shell_understands():
    subprocess.run(["sh", "-n"], input=arm_image.MAKE_DISK + arm_image.INIT, text=True, check=True)
