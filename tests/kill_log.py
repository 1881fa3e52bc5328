"""The log of `strace -y -xx`, as calls: which of them change what the disk holds, and where."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

CHANGING = tuple("""write pwrite64 writev pwritev pwritev2 sendfile copy_file_range rename renameat renameat2 fsync
                 fdatasync sync syncfs unlink unlinkat rmdir symlink symlinkat link linkat mkdir mkdirat open openat
                 creat truncate ftruncate fallocate chmod fchmod fchmodat""".split())


@dataclass(frozen=True)
class Call:
    """One system call; its arguments as bytes (strings), (number, path) (descriptors), or the text as it stands."""

    pid: int
    name: str
    args: tuple
    result: int | None  # None: the process died in it
    is_injected: bool  # strace made it fail
    nth: int  # the how many-th call of this name in this process, counted from 1: strace's `when=`

    def paths(self) -> list[str]:
        """The absolute paths that it names, or those behind its descriptors; ValueError for a relative one."""
        found, folder = [], None
        for arg in self.args:
            if isinstance(arg, tuple):
                if folder is not None and self.name in ("sendfile", "copy_file_range"):
                    found.append(folder)
                folder = arg[1]
            elif isinstance(arg, bytes) and "write" not in self.name:
                found.append(os.path.normpath(os.path.join(folder or "", os.fsdecode(arg))))
                folder = None
        if folder is not None:
            found.append(folder)
        if self.name in ("symlink", "symlinkat"):
            found = found[1:]  # the first is what the link says, not a place
        if relative := [path for path in found if self.result is not None and not re.match("/|[a-z_]+:", path)]:
            raise ValueError(f"{self.name}: the log does not say where {relative[0]} lies; give the whole path")
        return found

    def inside(self, root: str) -> bool:
        """Whether it touches something at or below ``root``, or everything (sync)."""
        return self.name == "sync" or any(f"{path}/".startswith(f"{root}/") for path in self.paths())

    def changes(self) -> bool:
        """Whether it changes what a disk holds, or tries to: all but files opened as they are."""
        return self.name not in ("open", "openat") or any(isinstance(a, str) and "O_CREAT" in a for a in self.args)


def read_log(path: str | os.PathLike) -> list[Call]:
    """The calls of a log in the order in which they ended; ValueError for a line that is not understood."""
    calls: list[Call] = []
    counts: dict[tuple[int, str], int] = {}
    begun: dict[int, tuple[str, int]] = {}
    for line in Path(path).read_text("ascii").splitlines():
        match = re.match(r"(?:(\d+) +)?(.*)$", line)
        pid, text = int(match[1] or 0), match[2]
        if text.startswith(("---", "+++")):
            continue
        if text.endswith("<unfinished ...>"):
            name = text.partition("(")[0]
            counts[pid, name] = counts.get((pid, name), 0) + 1
            begun[pid] = (text.removesuffix("<unfinished ...>").rstrip(), counts[pid, name])
            continue
        if resumed := re.match(r"<\.\.\. (\w+) resumed>(.*)$", text):
            start, nth = begun.pop(pid)
            text = start + resumed[2]
        match = re.fullmatch(r"(\w+)\((.*?)\)? += (\?|-?\d+)(.*)", text)
        if not match:
            raise ValueError(f"{path}: a line of the log is not understood: {line[:200]}")
        name = match[1]
        if not resumed:
            counts[pid, name] = nth = counts.get((pid, name), 0) + 1
        result = None if match[3] == "?" else int(match[3])
        calls.append(Call(pid, name, tuple(_argument(arg) for arg in match[2].split(", ") if arg), result,
                          "(INJECTED)" in match[4], nth))
    return calls


def _argument(text: str) -> bytes | tuple[str, str] | str:
    if match := re.fullmatch(r'\[?(?:\{iov_base=)?"((?:\\x[0-9a-f]{2})*)"', text):
        return bytes.fromhex(match[1].replace("\\x", ""))
    if match := re.fullmatch(r"(AT_FDCWD|\d+)<((?:\\x[0-9a-f]{2})*)>(?:\(deleted\))?", text):
        return match[1], os.fsdecode(bytes.fromhex(match[2].replace("\\x", "")))
    return text
