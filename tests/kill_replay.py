"""What a power cut leaves of a program's writes: a file system that forgets all that was not synced.

`Disk` replays the calls of a log (`strace -f -y -xx -s BIG`) on the folder as it was before; after every call
`Disk.after_power_cut` gives the trees that could be found after a power cut at that moment. A file's bytes are on the
disk after fsync or fdatasync of the file; a name (made, renamed, linked, removed) after fsync of its folder, a rename
as one thing; all of it after sync or syncfs. What was not synced may be there or not:

    nothing      nothing of it is there
    names        all names are there, but no unsynced bytes: new files are empty (ext4 and XFS without flushing)
    zeros        all names and sizes are there, but zeros for unsynced bytes (blocks allocated, never written)
    one folder   the names of one folder are there, those of the others are not: folders reach the disk in any order

Method: Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014. Promises: fsync(2).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kill_log import Call


@dataclass(eq=False)
class File:
    """A file, or a symbolic link: its bytes never change, so they are as durable as its name."""

    live: bytearray
    safe: bytes  # what is on the disk whatever happens
    kept: int  # how many bytes of `safe` no truncation since has cut off
    mode: int = 0o644
    is_link: bool = False

    def synced(self) -> None:
        self.safe, self.kept = bytes(self.live), len(self.live)

    def nothing(self) -> bytes:
        """Its bytes after a power cut, if neither an unsynced write nor an unsynced truncation got there."""
        return self.safe

    def names(self) -> bytes:
        """The same if truncations did, for they are changes of names and sizes."""
        return self.safe[: self.kept]

    def zeros(self) -> bytes:
        """The same if its present size did."""
        return self.names() + bytes(max(0, len(self.live) - self.kept))

    def everything(self) -> bytes:
        return bytes(self.live)


@dataclass(eq=False)
class Folder:
    """Names and what they stand for: now, and on the disk whatever happens."""

    live: dict[str, File | Folder] = field(default_factory=dict)
    safe: dict[str, File | Folder] = field(default_factory=dict)
    mode: int = 0o755


Tree = dict[str, tuple]  # path below the root -> ("folder", mode) | ("link", target) | ("file", inode, bytes, mode)


class Disk:
    """The folder ``root`` as it is now (all of it on the disk), to which calls are then applied one by one."""

    def __init__(self, root: str | os.PathLike):
        self.root = os.path.realpath(root)
        self._opened: dict[tuple[int, str], list] = {}  # (pid, descriptor) -> [file or folder, position, appends]
        self._moved: list[tuple[Folder, str, Folder, str]] = []  # renames between folders, not yet synced
        inodes: dict[int, File] = {}
        self.top = self._load(self.root, inodes)

    def _load(self, path: str, inodes: dict[int, File]) -> Folder:
        folder = Folder(mode=os.stat(path).st_mode & 0o7777)
        for entry in os.scandir(path):
            if entry.is_dir(follow_symlinks=False):
                node = self._load(entry.path, inodes)
            elif (node := inodes.get(entry.inode())) is None:
                is_link = entry.is_symlink()
                data = os.fsencode(os.readlink(entry.path)) if is_link else Path(entry.path).read_bytes()
                mode = entry.stat(follow_symlinks=False).st_mode & 0o7777
                node = inodes[entry.inode()] = File(bytearray(data), data, len(data), mode, is_link)
            folder.live[entry.name] = node
        folder.safe = dict(folder.live)
        return folder

    # --- calls ------------------------------------------------------------------------------------

    def apply(self, call: Call) -> None:
        """Do what the call did; ValueError for one that the model does not know: it must not guess."""
        if call.result is None or call.result < 0:
            return
        name = {"open": "openat", "creat": "openat", "fdatasync": "fsync", "mkdirat": "mkdir", "linkat": "link",
                "symlinkat": "symlink", "unlinkat": "unlink", "rmdir": "unlink", "renameat": "rename",
                "renameat2": "rename", "pwrite64": "write", "sync": "syncfs", "fchmod": "chmod",
                "fchmodat": "chmod"}.get(call.name, call.name)
        method = getattr(self, f"_{name}", None)
        if method is None:
            raise ValueError(f"the model does not know the system call {call.name}{call.args!r:.200}")
        method(call, *call.paths())

    def _place(self, path: str) -> tuple[Folder, str]:
        """(folder, name) of a path below the root; symbolic links on the way are followed."""
        if not path.startswith(self.root + "/"):
            raise ValueError(f"{path}: outside of {self.root}, but changed together with it")
        folder, parts = self.top, path[len(self.root) + 1 :].split("/")
        for i, part in enumerate(parts[:-1]):
            folder = folder.live[part]
            if isinstance(folder, File):
                link = os.path.join(self.root, *parts[:i], os.fsdecode(bytes(folder.live)), *parts[i + 1 :])
                return self._place(os.path.normpath(link))
        return folder, parts[-1]

    def _node(self, path: str) -> File | Folder:
        if path == self.root:
            return self.top
        folder, name = self._place(path)
        return folder.live[name]

    def _openat(self, call: Call, path: str) -> None:
        flags = next((a for a in call.args if isinstance(a, str) and "O_" in a), "O_CREAT|O_TRUNC")  # none: creat
        if path != self.root and (place := self._place(path))[1] not in place[0].live:
            place[0].live[place[1]] = File(bytearray(), b"", 0, _mode(call) & ~0o022)
        while isinstance(node := self._node(path), File) and node.is_link:
            path = os.path.normpath(os.path.join(os.path.dirname(path), os.fsdecode(bytes(node.live))))
        if "O_TRUNC" in flags:
            self._cut(node, 0)
        self._opened[call.pid, str(call.result)] = [node, 0, "O_APPEND" in flags]

    def _write(self, call: Call, path: str) -> None:
        data = call.args[1]
        if not isinstance(data, bytes) or len(data) < call.result:
            raise ValueError(f"{path}: the log does not hold the bytes written; strace needs a larger -s")
        opened = self._opened[call.pid, call.args[0][0]]
        if call.name == "pwrite64":
            self._put(opened[0], int(call.args[3]), data[: call.result])
            return
        at = len(opened[0].live) if opened[2] else opened[1]
        self._put(opened[0], at, data[: call.result])
        opened[1] = at + call.result

    def _sendfile(self, call: Call, *_paths: str) -> None:
        (out, _), (_, source), offset = call.args[:3]
        node = self._node(source) if source.startswith(self.root + "/") else None
        data = bytes(node.live) if node else Path(source).read_bytes()
        if offset == "NULL":
            raise ValueError("sendfile without an offset is not modelled")
        start = int(re.match(r"\[(\d+)\]", offset)[1])
        opened = self._opened[call.pid, out]
        self._put(opened[0], opened[1], data[start : start + call.result])
        opened[1] += call.result

    @staticmethod
    def _put(file: File, at: int, data: bytes) -> None:
        file.live.extend(bytes(max(0, at - len(file.live))))
        file.live[at : at + len(data)] = data

    @staticmethod
    def _cut(file: File, size: int) -> None:
        del file.live[size:]
        file.live.extend(bytes(size - len(file.live)))
        file.kept = min(file.kept, size)

    def _ftruncate(self, call: Call, path: str) -> None:
        self._cut(self._opened[call.pid, call.args[0][0]][0], int(call.args[1]))

    def _truncate(self, call: Call, path: str) -> None:
        self._cut(self._node(path), int(call.args[1]))

    def _chmod(self, call: Call, path: str) -> None:
        self._node(path).mode = _mode(call)

    def _mkdir(self, call: Call, path: str) -> None:
        folder, name = self._place(path)
        folder.live[name] = Folder(mode=_mode(call) & ~0o022)

    def _symlink(self, call: Call, path: str) -> None:
        folder, name = self._place(path)
        target = next(a for a in call.args if isinstance(a, bytes))
        folder.live[name] = File(bytearray(target), target, len(target), is_link=True)

    def _link(self, call: Call, old: str, new: str) -> None:
        folder, name = self._place(new)
        folder.live[name] = self._node(old)

    def _unlink(self, call: Call, path: str) -> None:
        folder, name = self._place(path)
        del folder.live[name]

    def _rename(self, call: Call, old: str, new: str) -> None:
        (source, old_name), (target, new_name) = self._place(old), self._place(new)
        target.live[new_name] = source.live.pop(old_name)
        if source is not target:
            self._moved.append((source, old_name, target, new_name))

    def _fsync(self, call: Call, path: str) -> None:
        opened = self._opened.get((call.pid, call.args[0][0]))
        node = opened[0] if opened else self._node(path)
        if isinstance(node, File):
            node.synced()
        else:
            self._commit(node, None)

    def _syncfs(self, call: Call, *_paths: str) -> None:
        for node in _all(self.top):
            if isinstance(node, File):
                node.synced()
            else:
                node.safe = dict(node.live)
        self._moved.clear()

    # --- what a power cut leaves --------------------------------------------------------------------

    def _commit(self, folder: Folder, overlay: dict[Folder, dict] | None) -> None:
        """Write back one folder, with the other half of renames that touch it; into ``overlay`` only, if given."""
        moved = [move for move in self._moved if folder in (move[0], move[2])]
        for source, old_name, target, new_name in moved:
            node = target.live.get(new_name)
            for other, name, value in ((source, old_name, None), (target, new_name, node)):
                entries = other.safe if overlay is None else overlay.setdefault(other, dict(other.safe))
                if value is None:
                    entries.pop(name, None)
                else:
                    entries[name] = value
        if overlay is None:
            folder.safe = dict(folder.live)
            self._moved = [move for move in self._moved if move not in moved]
        else:
            overlay[folder] = dict(folder.live)

    def after_power_cut(self) -> Iterator[tuple[str, Tree]]:
        """(name of the variant, the tree it finds); the same tree may come more than once."""
        yield "nothing", self._tree({}, File.nothing)
        yield "names", self._tree(None, File.names)
        yield "zeros", self._tree(None, File.zeros)
        for folder in [node for node in _all(self.top) if isinstance(node, Folder) and node.live != node.safe]:
            overlay: dict[Folder, dict] = {}
            self._commit(folder, overlay)
            yield "one folder", self._tree(overlay, File.nothing)

    def now(self) -> Tree:
        """What the folder holds while the power stays."""
        return self._tree(None, File.everything)

    def _tree(self, overlay: dict[Folder, dict] | None, bytes_of: Callable[[File], bytes]) -> Tree:
        """All that can be reached: by the durable names and those of ``overlay``, or (None) by all names."""
        tree: Tree = {}

        def walk(folder: Folder, prefix: str) -> None:
            for name, node in (folder.live if overlay is None else overlay.get(folder, folder.safe)).items():
                if isinstance(node, Folder):
                    tree[prefix + name] = ("folder", node.mode)
                    walk(node, f"{prefix}{name}/")
                elif node.is_link:
                    tree[prefix + name] = ("link", bytes(node.live))
                else:
                    tree[prefix + name] = ("file", id(node), bytes_of(node), node.mode)

        walk(self.top, "")
        return tree


def _mode(call: Call) -> int:
    return next((int(a, 8) for a in call.args if isinstance(a, str) and re.fullmatch("0[0-7]+", a)), 0o644)


def _all(folder: Folder) -> Iterator[File | Folder]:
    yield folder
    for node in dict.fromkeys([*folder.live.values(), *folder.safe.values()]):
        if isinstance(node, Folder):
            yield from _all(node)
        else:
            yield node


def contents(tree: Tree) -> dict[str, tuple[str, object]]:
    """Path -> (kind, bytes or target), for comparing trees."""
    return {name: (kind, rest[1] if kind == "file" else rest[0] if kind == "link" else None)
            for name, (kind, *rest) in tree.items()}


def write_tree(tree: Tree, root: Path) -> None:
    """Make ``root`` (which must not exist) hold the tree; files with several names are linked."""
    root.mkdir()
    written: dict[int, Path] = {}
    for name, (kind, *rest) in tree.items():
        path = root / name
        if kind == "folder":
            path.mkdir(rest[0])
        elif kind == "link":
            os.symlink(rest[0], os.fsencode(path))
        elif rest[0] in written:
            os.link(written[rest[0]], path)
        else:
            path.write_bytes(rest[1])
            path.chmod(rest[2])
            written[rest[0]] = path
