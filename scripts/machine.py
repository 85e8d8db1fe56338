#!/usr/bin/python3
"""Boots the stock kernel in an emulated machine, runs a command in it and checks the kernel's log.

Called by scripts/qemu (SVM) and scripts/bochs (VMX), which say how; runs in the toolbox. The machine has two serial ports: the
first is the kernel's console and goes to a log file, the second is the command's terminal. All files are in its initramfs.
"""

import argparse
import contextlib
import glob
import lzma
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
import tty

import kernel_log
from initramfs import Archive

# Exit statuses of the runner itself, apart from the command's own.
LOG_BAD = 120  # the command succeeded, but the kernel complained
DIED = 121  # the machine ended without a report
TIMED_OUT = 124  # as timeout(1)

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CACHE = os.environ["XVM_CACHE"]
SHARE_MODULES = ["9pnet_virtio", "9p"]
KVM_MODULES = {"svm": ["kvm-amd"], "vmx": ["kvm-intel enable_apicv=0"]}


def fail(message):
    sys.exit(f"xvm: error: {message}")


class Kernel:
    """The stock kernel's image and modules, as scripts/kernel left them."""

    def __init__(self, folder):
        with open(f"{folder}/release", encoding="utf-8") as opened:
            self.release = opened.read().strip()
        self.image = f"{folder}/vmlinuz"
        self.modules = f"{folder}/lib/modules/{self.release}"
        self.needs = {}
        with open(f"{self.modules}/modules.dep", encoding="utf-8") as opened:
            for line in opened:
                path, needs = line.split(":")
                self.needs[self.name(path)] = (path, [self.name(need) for need in needs.split()])

    @staticmethod
    def name(path):
        return os.path.basename(path).split(".")[0].replace("_", "-")

    def add(self, archive, list_name, modules):
        """Adds modules, uncompressed, and the list that init inserts them by."""
        lines = []
        for module in modules:
            name, _, parameters = module.partition(" ")
            name = self.name(name)
            for each in [*reversed(self.needs[name][1]), name]:
                path = self.needs[each][0]
                with lzma.open(f"{self.modules}/{path}") as opened:
                    archive.data(f"lib/modules/{each}.ko", opened.read())
                line = f"{each}.ko {parameters if each == name else ''}".strip()
                if line not in lines:
                    lines.append(line)
        archive.data(f"lib/modules/{list_name}.list", "".join(line + "\n" for line in lines).encode())


def busybox(archive):
    archive.file("/usr/bin/busybox", "bin/busybox", 0o755)
    listed = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True).stdout
    for applet in listed.split():
        if applet != "busybox":
            archive.link("busybox", f"bin/{applet}")


def compile_static(source, target):
    """Builds one of the guest's helpers, if it is not there or older than its source."""
    if not os.path.exists(target) or os.path.getmtime(target) < os.path.getmtime(source):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        part = f"{target}.{os.getpid()}"
        subprocess.run(["gcc", "-O1", "-ffp-contract=off", "-Wall", "-Werror", "-static", "-o", part, source, "-lm"], check=True)
        os.rename(part, target)
    return target


def nested_guest():
    """The initramfs of the guest that xvm runs inside the machine."""
    archive = Archive()
    archive.console()
    busybox(archive)
    for name in ["proc", "sys", "tmp", "root"]:
        archive.directory(name)
    archive.file(f"{TOP}/scripts/guest/nested-init", "init", 0o755)
    archive.file(f"{TOP}/scripts/guest/workload", "bin/workload", 0o755)
    archive.file(f"{TOP}/scripts/guest/smp", "bin/smp", 0o755)
    archive.file(helper("checksum"), "bin/checksum", 0o755)
    archive.file(helper("together"), "bin/together", 0o755)
    return archive.finish()


def helper(name):
    return compile_static(f"{TOP}/scripts/guest/{name}.c", f"{TOP}/build/guest/{name}")


def stripped(module):
    """A module without its debug sections, which are never loaded and nine tenths of the file."""
    with tempfile.NamedTemporaryFile() as target:
        subprocess.run(["strip", "--strip-debug", "-o", target.name, module], check=True)
        return target.read()


def machine_archive(options, kernel):
    archive = Archive()
    archive.console()
    busybox(archive)
    for name in ["proc", "sys", "tmp", "root", "run", "xvm/bin"]:
        archive.directory(name)
    archive.file(f"{TOP}/scripts/guest/init", "init", 0o755)
    archive.file(f"{TOP}/scripts/guest/boot-guest", "xvm/bin/boot-guest", 0o755)
    archive.file(helper("checksum"), "xvm/bin/checksum", 0o755)

    module = options.module or f"{TOP}/xvm.ko"
    with_xvm = not options.no_xvm and os.path.exists(module)
    if options.module and not with_xvm:
        fail(f"no {module}")
    if with_xvm:
        archive.data("xvm/xvm.ko", stripped(module))
    tool = f"{TOP}/target/x86_64-unknown-linux-gnu/release/xvm"
    if os.path.exists(tool):
        archive.file(tool, "xvm/bin/xvm", 0o755)
    for test in sorted(glob.glob(f"{TOP}/build/selftests/*")) if options.selftests else []:
        if os.access(test, os.X_OK) and os.path.isfile(test):
            archive.file(test, f"xvm/bin/{os.path.basename(test)}", 0o755)
    for pair in options.file:
        source, _, target = pair.partition(":")
        if not os.path.exists(source):
            fail(f"--file: no {source}")
        archive.file(source, target or f"xvm/bin/{os.path.basename(source)}")
    if options.guest:
        archive.file(kernel.image, "xvm/guest/vmlinuz")
        archive.data("xvm/guest/initramfs", nested_guest())

    kernel.add(archive, "kvm-" + options.vendor, KVM_MODULES[options.vendor])
    shares = []
    if options.share:
        kernel.add(archive, "share", SHARE_MODULES)
        shares = [f"share{i}:{share.partition(':')[2] or share.partition(':')[0]}" for i, share in enumerate(options.share)]
    columns, rows = shutil.get_terminal_size()
    config = {
        "VENDOR": options.vendor,
        "KVM": int(options.kvm),
        "XVM": int(with_xvm),
        "XVM_PARAMETERS": options.parameters,
        "INTERACTIVE": int(options.interactive),
        "SHARE": " ".join(shares),
        "ROWS": rows,
        "COLUMNS": columns,
    }
    archive.data("xvm/config", "".join(f"{key}='{value}'\n" for key, value in config.items()).encode())
    archive.data("xvm/command", (options.command + "\n").encode())
    return archive.finish()


def command_line(options):
    loglevel = 7 if options.verbose else 5
    # The self-tests of the crypto code are a fifth of the boot in Bochs, and elsewhere go on for a second beside the command, which a
    # measurement then measures too. no_timer_check: on a busy machine the PIT's interrupts come too late for that check, and
    # the kernel panics over it.
    words = ["console=ttyS0,115200", f"loglevel={loglevel}", "printk.devkmsg=on panic=-1 oops=panic cryptomgr.notests no_timer_check"]
    if options.vendor == "vmx":
        words.append(f"tsc_early_khz={BOCHS_IPS // 1000}")
    return " ".join([*words, options.append]).strip()


def qemu_binary(options):
    if options.stock_qemu:
        return "qemu-system-x86_64"
    script = f"{TOP}/scripts/qemu-svmfix.py"
    return subprocess.run([sys.executable, script, CACHE], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def qemu(options, kernel, folder, log):
    """The command line of a machine with SVM. Its second serial port is standard input and output."""
    cpus = 1 if options.icount else options.cpus
    command = [qemu_binary(options), "-nodefaults", "-no-reboot", "-display", "none"]
    # With several threads TCG now and then loses a local APIC timer interrupt; with one it has not been seen to.
    command += ["-machine", "q35", "-accel", "tcg,thread=single", "-cpu", f"EPYC-v4,+svm,+npt{options.cpu}"]
    command += ["-m", options.memory, "-smp", str(cpus)]
    command += ["-kernel", kernel.image, "-initrd", f"{folder}/initramfs", "-append", command_line(options)]
    command += ["-chardev", f"file,id=log,path={log}", "-serial", "chardev:log"]
    command += ["-chardev", "stdio,id=terminal,signal=off", "-serial", "chardev:terminal"]
    if options.icount:
        command += ["-icount", "shift=0,sleep=off"]
    for i, share in enumerate(options.share):
        path = share.partition(":")[0]
        command += ["-virtfs", f"local,path={path},mount_tag=share{i},security_model=none,multidevs=remap"]
    return command


# Instructions a second of emulated time, about what Bochs does in a real second. Its TSC counts instructions, but CPUID gives the
# real model's 3.5 GHz: the kernel is told the rate, or its sleeps would take 50 times as long as the timer interrupts say.
BOCHS_IPS = 70_000_000
BOCHS = """
display_library: rfb, options="timeout=0"
cpu: model=corei7_skylake_x, count={cpus}, ips={ips}, ignore_bad_msrs=1, reset_on_triple_fault=0
memory: guest={megabytes}, host={megabytes}
romimage: file={share}/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
ata0-master: type=cdrom, path={folder}/boot.iso, status=inserted
boot: cdrom
clock: sync=none
log: {folder}/bochs.log
error: action=ignore
panic: action=report
info: action=ignore
debug: action=ignore
com1: enabled=1, mode=file, dev={log}
com2: enabled=1, mode={mode}, dev={terminal}
"""
GRUB = """
set timeout=0
linux /vmlinuz {command_line}
initrd /initramfs
boot
"""


def bochs(options, kernel, folder, log, terminal):
    """The command line of a machine with VMX, booted from an ISO image."""
    os.makedirs(f"{folder}/iso/boot/grub")
    shutil.copy(kernel.image, f"{folder}/iso/vmlinuz")
    os.rename(f"{folder}/initramfs", f"{folder}/iso/initramfs")
    with open(f"{folder}/iso/boot/grub/grub.cfg", "w", encoding="utf-8") as config:
        config.write(GRUB.format(command_line=command_line(options)))
    subprocess.run(
        ["grub-mkrescue", "--compress=no", "--fonts=", "--themes=", "--locales=", "-o", f"{folder}/boot.iso", f"{folder}/iso"],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    shutil.rmtree(f"{folder}/iso")
    with open(f"{folder}/bochsrc", "w", encoding="utf-8") as config:
        config.write(
            BOCHS.format(
                cpus=options.cpus,
                ips=BOCHS_IPS,
                megabytes=int(float(options.memory.rstrip("GM")) * (1024 if options.memory.endswith("G") else 1)),
                share="/usr/share/bochs",
                folder=folder,
                log=log,
                mode="term" if options.interactive else "file",
                terminal=terminal,
            )
        )
    return ["bochs", "-q", "-f", f"{folder}/bochsrc"]


class Log:
    """The kernel's console, followed while it grows."""

    def __init__(self, path, show):
        self.path = path
        self.show = show
        self.text = ""
        self.position = 0

    def poll(self):
        with contextlib.suppress(FileNotFoundError), open(self.path, "rb") as opened:
            opened.seek(self.position)
            data = opened.read()
            self.position += len(data)
            new = data.decode(errors="replace").replace("\r", "")
            self.text += new
            if self.show and new:
                sys.stderr.write(new)
                sys.stderr.flush()

    def status(self):
        found = re.findall(r"xvm-machine: status (\d+)", self.text)
        return int(found[-1]) if found else None

    def tail(self, count=40):
        return "\n".join(self.text.splitlines()[-count:])


class Output:
    """Copies what the command writes (a file that grows) to standard output."""

    def __init__(self, path):
        self.path = path
        self.position = 0

    def poll(self):
        with contextlib.suppress(FileNotFoundError), open(self.path, "rb") as opened:
            opened.seek(self.position)
            data = opened.read()
            self.position += len(data)
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


class Relay:
    """Joins the user's terminal to a pseudo-terminal, the other end of which Bochs has as its serial port."""

    def __init__(self):
        self.ours, theirs = pty.openpty()
        tty.setraw(theirs)
        self.terminal = os.ttyname(theirs)
        self.saved = termios.tcgetattr(0)
        tty.setraw(0)

    def poll(self):
        for source in select.select([0, self.ours], [], [], 0.02)[0]:
            data = os.read(source, 4096)
            os.write(1 if source == self.ours else self.ours, data)

    def close(self):
        termios.tcsetattr(0, termios.TCSADRAIN, self.saved)


def waited(pid):
    """Seconds that the busiest of a process's threads was ready to run but had no CPU (scheduler statistics, in ns)."""
    longest = 0
    for path in glob.glob(f"/proc/{pid}/task/*/schedstat"):
        with contextlib.suppress(OSError, IndexError), open(path, encoding="ascii") as opened:
            longest = max(longest, int(opened.read().split()[1]))
    return longest / 1e9


def watch(process, log, others, timeout):
    """Waits for the machine to end; ends it when it is over time or its kernel is dead. Returns why, or None."""
    start = time.monotonic()
    dead_since = None
    while True:
        ended = process.poll() is not None
        log.poll()
        for other in others:
            other.poll()
        if ended:
            return None
        now = time.monotonic()
        if dead_since is None and kernel_log.DEAD.search(log.text):
            dead_since = now
        if dead_since is not None and now > dead_since + 3:
            return "the kernel panicked"
        # Time in which a busy machine kept the emulator waiting does not count, up to a limit.
        if timeout and now > start + timeout and (now > start + 5 * timeout or now - waited(process.pid) > start + timeout):
            return f"no end after {timeout:.0f} s"
        time.sleep(0.05)


def end(process):
    """Ends the emulator that this script started, and nothing else."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def new_log(name):
    """A log file of this run alone; NAME.log links to the last one, and the last 20 of a name are kept."""
    folder = f"{TOP}/build/log"
    os.makedirs(folder, exist_ok=True)
    for old in sorted(glob.glob(f"{folder}/{name}-[0-9]*.log"), key=os.path.getmtime)[:-20]:
        os.remove(old)
    path = f"{folder}/{name}-{os.getpid()}.log"
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
    link = f"{folder}/{name}.log"
    os.symlink(os.path.basename(path), f"{link}.{os.getpid()}")
    os.rename(f"{link}.{os.getpid()}", link)
    return path


def run(options, kernel):
    log_path = new_log(options.name)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="xvm-machine-"))
        with open(f"{folder}/initramfs", "wb") as opened:
            opened.write(machine_archive(options, kernel))
        others = []
        stdin = None if options.interactive else subprocess.DEVNULL
        if options.vendor == "svm":
            command = qemu(options, kernel, folder, log_path)
            stdout = None
        else:
            terminal = f"{folder}/terminal"
            if options.interactive:
                relay = Relay()
                stack.callback(relay.close)
                others.append(relay)
                terminal = relay.terminal
            else:
                others.append(Output(terminal))
            command = bochs(options, kernel, folder, log_path, terminal)
            stdin = stdout = subprocess.DEVNULL
        errors = stack.enter_context(open(f"{folder}/stderr", "w+", encoding="utf-8"))
        log = Log(log_path, options.verbose)
        process = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=errors)
        stack.callback(end, process)
        reason = watch(process, log, others, options.timeout)
        end(process)
        log.poll()
        errors.seek(0)
        return verdict(log, reason, errors.read(), log_path)


def verdict(log, reason, errors, log_path):
    """The runner's exit status, with what went wrong on standard error."""
    status = log.status()
    bad = kernel_log.bad_lines(log.text)
    if status is None:
        lines = [line for line in errors.splitlines() if not re.match(r"ALSA|.*TCG doesn't support requested feature", line)]
        print(f"xvm: the machine ended without a report: {reason or 'reset or emulator failure'}", file=sys.stderr)
        print(kernel_log.demangled("\n".join(lines[-5:] + [log.tail()])), file=sys.stderr)
        print(f"xvm: whole log: {os.path.relpath(log_path)}", file=sys.stderr)
        return TIMED_OUT if reason and reason.startswith("no end") else DIED
    if bad:
        print("xvm: the kernel complained:", file=sys.stderr)
        print(kernel_log.demangled("\n".join(bad[:20])), file=sys.stderr)
        print(f"xvm: whole log: {os.path.relpath(log_path)}", file=sys.stderr)
        return status or LOG_BAD
    return status


def arguments():
    parser = argparse.ArgumentParser(prog="qemu|bochs", usage="%(prog)s [OPTIONS] [-- CMD...]", description=__doc__.splitlines()[0])
    parser.add_argument("vendor", choices=["svm", "vmx"], help=argparse.SUPPRESS)
    parser.add_argument("kernel", help=argparse.SUPPRESS)
    parser.add_argument("--kvm", action="store_true", help="insert kvm and kvm-amd or kvm-intel before xvm")
    parser.add_argument("--no-xvm", action="store_true", help="leave xvm.ko out")
    parser.add_argument("--module", metavar="FILE", help="another xvm.ko")
    parser.add_argument("--parameters", default="", metavar="TEXT", help="module parameters of xvm")
    parser.add_argument("--guest", action="store_true", help="put the stock kernel and an initramfs into /xvm/guest, for boot-guest")
    parser.add_argument("--no-selftests", dest="selftests", action="store_false", help="leave the selftests out of /xvm/bin")
    parser.add_argument("--file", action="append", default=[], metavar="SRC[:DST]", help="a file or folder more, at DST or in /xvm/bin")
    parser.add_argument("--share", action="append", default=[], metavar="DIR[:DST]", help="mount a folder of this machine (QEMU only)")
    parser.add_argument("--icount", action="store_true", help="time counts instructions: deterministic, one CPU (QEMU only)")
    parser.add_argument("--cpus", type=int, help="number of CPUs (QEMU 2, Bochs 1)")
    parser.add_argument("--cpu", default="", metavar=",FLAG...", help="more for QEMU's -cpu EPYC-v4,+svm,+npt")
    parser.add_argument("--memory", default=None, metavar="SIZE", help="as 512M (default: QEMU 2G, Bochs 1G)")
    parser.add_argument("--append", default="", metavar="TEXT", help="more for the kernel's command line")
    parser.add_argument("--stock-qemu", action="store_true", help="Debian's QEMU without the fixes of qemu-svmfix.py")
    parser.add_argument("--timeout", type=float, default=None, metavar="S", help="end the machine after S seconds, not counting those in which it had no CPU (default: 300, Bochs 900; none with a terminal)")
    parser.add_argument("--name", help="name of the log in build/log (default: qemu or bochs)")
    parser.add_argument("--tty", action="store_true", help="give CMD the terminal, as a shell has it")
    parser.add_argument("--verbose", action="store_true", help="show the kernel's log on standard error")
    parser.add_argument("CMD", nargs="*", help="after --: a shell command line; none: a shell, if there is a terminal")
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:cut])
    if options.CMD:
        parser.error("the command comes after --")
    options.command = " ".join(words[cut + 1 :])
    options.interactive = (options.tty or not options.command) and sys.stdin.isatty() and sys.stdout.isatty()
    if not options.command:
        if not options.interactive:
            fail("without a terminal a command is needed: -- CMD")
        options.command = "echo \"This is the emulated machine ($VENDOR). 'exit' powers it off.\"; cd; exec sh -l"
    svm = options.vendor == "svm"
    if not svm and (options.share or options.icount):
        fail("Bochs has no --share and no --icount")
    options.name = options.name or ("qemu" if svm else "bochs")
    options.cpus = options.cpus or (2 if svm else 1)
    options.memory = options.memory or ("2G" if svm else "1G")
    if options.timeout is None:
        options.timeout = 0 if options.interactive else 300 if svm else 900
    return options


def main():
    options = arguments()
    # A caller that is ended ends its machine as well.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(DIED))
    try:
        sys.exit(run(options, Kernel(options.kernel)))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
