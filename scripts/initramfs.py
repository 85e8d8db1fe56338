"""Makes initramfs archives (cpio, "newc"): the format is in the kernel's buffer-format.rst."""

import os
import stat


class Archive:
    """An initramfs in the making. Folders on the way to a file are added on their own."""

    def __init__(self):
        self.parts = []
        self.seen = set()
        self.ino = 0

    def _entry(self, name, mode, data=b"", device=(0, 0)):
        self.ino += 1
        encoded = name.encode() + b"\0"
        fields = (self.ino, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        self.parts += [header, b"\0" * (-len(header) % 4), data, b"\0" * (-len(data) % 4)]

    def directory(self, name):
        name = name.strip("/")
        if name and name not in self.seen:
            self.directory(os.path.dirname(name))
            self.seen.add(name)
            self._entry(name, stat.S_IFDIR | 0o755)

    def data(self, name, data, mode=0o644):
        """Adds a file. One that is there already is replaced (the kernel takes the last)."""
        self.directory(os.path.dirname(name.strip("/")))
        self._entry(name.strip("/"), stat.S_IFREG | mode, data)

    def file(self, source, name, mode=None):
        """Adds a copy of a file, or of a whole folder."""
        if os.path.isdir(source):
            self.directory(name)
            for entry in sorted(os.listdir(source)):
                self.file(os.path.join(source, entry), f"{name}/{entry}")
            return
        with open(source, "rb") as opened:
            data = opened.read()
        self.data(name, data, stat.S_IMODE(os.stat(source).st_mode) if mode is None else mode)

    def link(self, target, name):
        self.directory(os.path.dirname(name.strip("/")))
        self._entry(name.strip("/"), stat.S_IFLNK | 0o777, target.encode())

    def console(self):
        """The device that the kernel opens for init, before anything is mounted."""
        self.directory("dev")
        self._entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))

    def finish(self):
        self._entry("TRAILER!!!", 0)
        return b"".join(self.parts)
