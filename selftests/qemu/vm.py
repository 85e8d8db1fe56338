# SPDX-License-Identifier: GPL-2.0
"""A QEMU process, its monitor, and a guest that carries out commands."""

import contextlib
import json
import os
import socket
import subprocess
import tempfile
import time

# The machines are emulated, and busy.
PATIENCE = 300

MEGABYTE = 1 << 20

# In memory: the root file system is another machine's.
FOLDER = "/dev/shm"


class Failure(Exception):
    """What a test found wrong."""


def check(condition, message):
    if not condition:
        raise Failure(message)


def expect(expected, found, what):
    check(expected == found, f"{what}: expected {expected!r}, found {found!r}")


def until(condition, what):
    """Waits until `condition` is true, and returns what it is."""
    end = time.monotonic() + PATIENCE
    while True:
        result = condition()
        if result:
            return result
        check(time.monotonic() < end, f"waited in vain: {what}")
        time.sleep(0.05)


# Bytes of kvmclock's wall clock.
WALL_CLOCK = 12


def expect_same(before, after):
    """That all guest memory is the same, but for one structure: giving a vCPU the MSR of the wall clock writes that anew."""
    differ = [i for i in range(0, len(before), 4096) if before[i : i + 4096] != after[i : i + 4096]]
    if len(differ) == 1:
        page = range(differ[0], differ[0] + 4096)
        places = [i for i in page if before[i] != after[i]]
        if places[-1] - places[0] < WALL_CLOCK:
            return
    check(not differ, f"{len(differ)} pages of guest memory differ: {' '.join(hex(i) for i in differ[:20])}")


@contextlib.contextmanager
def scratch(name):
    """The path of a file that is gone at the end of the `with` block."""
    path = f"{FOLDER}/qemu-{name}"
    try:
        yield path
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


class Stream:
    """A socket that is read up to a mark. `alive` raises when the process at the other end is not."""

    def __init__(self, path, alive):
        self.socket = socket.socket(socket.AF_UNIX)
        self.text = b""
        self.alive = alive

        def connect():
            alive()
            try:
                self.socket.connect(path)
            except OSError:
                return False
            return True

        until(connect, f"a connection to {path}")
        self.socket.settimeout(PATIENCE)

    def write(self, text):
        self.socket.sendall(text.encode())

    def read_to(self, mark):
        """What comes before `mark`."""
        mark = mark.encode()
        while mark not in self.text:
            try:
                data = self.socket.recv(65536)
            except TimeoutError:
                raise Failure(f"no {mark!r} came, but {self.text[-600:].decode(errors='replace')!r}") from None
            except ConnectionError:
                data = b""
            if not data:
                until(self.alive, "the end of what closed a connection")
            self.text += data
        before, _, self.text = self.text.partition(mark)
        return before.decode(errors="replace")


class Qemu:
    """A virtual machine. Leaving the `with` block ends it."""

    files = {}  # kernel, initramfs: where they are

    def __init__(self, *options, device="/dev/xvm", irqchip="on", accel="", machine="pc", cpu="host", cpus=1, memory="192M", append=""):
        self.folder = tempfile.TemporaryDirectory(prefix="qemu", dir=FOLDER)
        self.serial = self.monitor = None
        self.events = []
        self.log = open(f"{self.folder.name}/log", "w+", encoding="utf-8")
        command = ["qemu-system-x86_64", "-nodefaults", "-display", "none"]
        command += ["-accel", f"kvm,device={device},kernel-irqchip={irqchip}{accel}"]
        command += ["-machine", machine, "-cpu", cpu, "-smp", str(cpus), "-m", memory]
        command += ["-chardev", f"socket,id=serial,path={self.path('serial')},server=on,wait=on", "-serial", "chardev:serial"]
        command += ["-qmp", f"unix:{self.path('qmp')},server=on,wait=off"]
        # no_timer_check: on a busy machine the timer's interrupts come too late for that check.
        words = f"console=ttyS0 loglevel=4 panic=-1 cryptomgr.notests no_timer_check {append}"
        command += ["-kernel", self.files["kernel"], "-initrd", self.files["initramfs"], "-append", words]
        command += options
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT)
        try:
            self.serial = Stream(self.path("serial"), self.alive)
            self.monitor = Stream(self.path("qmp"), self.alive)
            self.monitor.read_to("\n")
            self.qmp("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def path(self, name):
        return f"{self.folder.name}/{name}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in [self.serial, self.monitor]:
            if stream:
                stream.socket.close()
        self.log.close()
        self.folder.cleanup()

    def messages(self):
        """The last of what QEMU said."""
        return os.pread(self.log.fileno(), 65536, 0).decode(errors="replace")[-600:]

    def alive(self):
        check(self.process.poll() is None, f"QEMU ended with status {self.process.returncode}: {self.messages()}")

    def message(self):
        """The monitor's next message. Events are kept, with their data."""
        message = json.loads(self.monitor.read_to("\n"))
        if "event" in message:
            self.events.append((message["event"], message.get("data", {})))
        return message

    def qmp(self, command, **arguments):
        """Asks the monitor; its answer."""
        self.monitor.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        while "event" in (answer := self.message()):
            pass
        check("return" in answer, f"{command}: {answer}")
        return answer["return"]

    def hmp(self, line):
        """A command of the monitor for people, which says something only if it fails."""
        answer = self.qmp("human-monitor-command", **{"command-line": line})
        check(not answer.strip(), f"{line}: {answer}")

    def booted(self):
        """Waits until the guest takes commands."""
        self.serial.read_to("@ready")

    def sh(self, line):
        """Has the guest carry out a line of shell; its output."""
        self.serial.write(line + "\n")
        output = self.serial.read_to("@status ")
        status = self.serial.read_to("\n").strip()
        expect("0", status, f"status of {line!r}, which said {output!r}")
        return output.strip()

    def ended(self):
        """Waits until QEMU has ended well."""
        until(lambda: self.process.poll() is not None, "the end of QEMU")
        expect(0, self.process.returncode, f"QEMU's status, after {self.messages()!r}")

    def power_off(self):
        """Has the guest turn the machine off, which is ACPI's."""
        self.serial.write("poweroff -f\n")
        while self.message().get("event") != "SHUTDOWN":
            pass
        expect("guest-shutdown", self.events[-1][1]["reason"], "why the machine is off")
        self.ended()

    def memory(self, size):
        """Guest memory, of a guest that doesn't run."""
        file = self.path("memory")
        self.qmp("pmemsave", val=0, size=size, filename=file)
        with open(file, "rb") as opened:
            data = opened.read()
        os.unlink(file)
        expect(size, len(data), "bytes of guest memory")
        return data

    def migrated(self):
        """Waits for the end of a migration from here."""

        def state():
            status = self.qmp("query-migrate").get("status")
            check(status not in ["failed", "cancelled"], f"migration {status}: {self.messages()}")
            return status == "completed"

        until(state, "the end of the migration")
