#!/usr/bin/python3
"""Counts the instructions of one exit, function by function.

Called by scripts/profile; runs in the toolbox. QEMU writes down the address of each instruction that the kernel executes, from
the moment on at which the machine is ready.
"""

import argparse
import bisect
import collections
import os
import re
import socket
import subprocess
import sys
import tempfile
import time

import machine

# All of the kernel (Documentation/arch/x86/x86_64/mm.rst).
FILTER = "0xffffffff80000000+0x7fffffff"
# The function that enters the guest.
ENTRY = "xvm_svm_run"
# Bytes of the trace, some 90 an instruction: the start of the tool, and many exits.
ENOUGH = 400 << 20
SYMBOLS = "cp /proc/kallsyms /mnt; for s in .text .noinstr.text; do echo $s $(cat /sys/module/xvm/sections/$s); done >/mnt/sections"
COMMAND = SYMBOLS + "; echo ready; read go </dev/ttyS1; while xvm bench --device /dev/xvm --kinds {kind}; do :; done"


def trace(kernel_folder, kind, folder):
    """Runs the benchmark and writes the trace, and where the symbols are, to `folder`."""
    words = ["svm", kernel_folder, "--no-selftests", "--icount", "--append", "nokaslr", "--share", f"{folder}:/mnt", "--"]
    sys.argv = ["qemu", *words, COMMAND.format(kind=kind)]
    options = machine.arguments()
    kernel = machine.Kernel(options.kernel)
    with open(f"{folder}/initramfs", "wb") as opened:
        opened.write(machine.machine_archive(options, kernel))
    command = machine.qemu(options, kernel, folder, f"{folder}/log")
    command += ["-dfilter", FILTER, "-D", f"{folder}/trace", "-monitor", f"unix:{folder}/monitor,server=on,wait=off"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        for line in process.stdout:
            if line.strip() == b"ready":
                break
        monitor = socket.socket(socket.AF_UNIX)
        monitor.connect(f"{folder}/monitor")
        monitor.sendall(b"one-insn-per-tb on\nlog exec,nochain\n")
        process.stdin.write(b"go\n")
        process.stdin.flush()
        while process.poll() is None and os.path.getsize(f"{folder}/trace") < ENOUGH:
            time.sleep(0.1)
    finally:
        machine.end(process)


def one_exit(folder, entry):
    """The addresses of the instructions from one entry to the next, where that takes as many as it mostly does."""
    with open(f"{folder}/trace", encoding="ascii", errors="replace") as opened:
        found = (re.search(r"/([0-9a-f]{16})/", line) for line in opened)
        addresses = [int(one[1], 16) for one in found if one]
    entries = [i for i, address in enumerate(addresses) if address == entry]
    # What comes first is the rest of the boot, and what fills caches.
    entries = entries[len(entries) // 2 :]
    lengths = collections.Counter(b - a for a, b in zip(entries, entries[1:]))
    if not lengths:
        machine.fail("no exits in the trace: is xvm.ko built, and the tool?")
    usual = lengths.most_common(1)[0][0]
    print(f"{usual} instructions of the kernel and the module ({lengths[usual]} of {lengths.total()} exits take as many)")
    start = next(a for a, b in zip(entries, entries[1:]) if b - a == usual)
    return addresses[start : start + usual]


class Symbols:
    """Names of addresses."""

    def __init__(self, folder):
        with open(f"{folder}/sections", encoding="ascii") as opened:
            pairs = [line.split() for line in opened]
        self.sections = sorted((int(start, 16), name) for name, start in pairs)
        self.names = []
        with open(f"{folder}/kallsyms", encoding="ascii") as opened:
            for line in opened:
                address, kind, name, *module = line.split()
                if kind in "tTwW" and not name.startswith("__pfx_"):
                    self.names.append((int(address, 16), name, bool(module)))
        self.names.sort()
        self.starts = [address for address, *_ in self.names]

    def entry(self):
        return next(address for address, name, _ in self.names if name == ENTRY)

    def name(self, address):
        """The symbol, and whether it is a module's."""
        _, name, of_module = self.names[bisect.bisect_right(self.starts, address) - 1]
        return name, of_module

    def in_source(self, addresses):
        """The functions of the module's source that its instructions belong to: the innermost one that isn't of a library."""
        found = {}
        for start, section in self.sections:
            end = min([other for other, _ in self.sections if other > start], default=1 << 64)
            text = "".join(f"{address - start:#x}\n" for address in set(addresses) if start <= address < end)
            command = ["addr2line", "-e", f"{machine.TOP}/xvm.ko", "-j", section, "-a", "-f", "-i", "-C"]
            output = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
            for block in re.split(r"^0x", output, flags=re.M)[1:]:
                offset, *lines = block.splitlines()
                places = [place.rpartition(":")[0] for place in lines[1::2]]
                frames = [frame for frame in zip(lines[::2], places) if frame[1].startswith(machine.TOP)]
                function, place = frames[0] if frames else ("?", "?")
                found[start + int(offset, 16)] = f"{os.path.relpath(place, machine.TOP)}  {plain(function)}"
        return found


def plain(function):
    """A function's name without its path and its types."""
    while re.search("<[^<>]*>", function):
        function = re.sub("<[^<>]*>", "", function)
    return function.rstrip(":").rpartition("::")[2]


def main():
    parser = argparse.ArgumentParser(prog="profile", description=__doc__.splitlines()[0])
    parser.add_argument("kernel", help=argparse.SUPPRESS)
    parser.add_argument("--order", action="store_true", help="in the order of execution")
    parser.add_argument("--lines", type=int, default=60, help="how many functions (60)")
    parser.add_argument("kind", help="as for `xvm bench --kinds`")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="xvm-profile-", dir=f"{machine.TOP}/build") as folder:
        trace(options.kernel, options.kind, folder)
        symbols = Symbols(folder)
        addresses = one_exit(folder, symbols.entry())
    source = symbols.in_source([address for address in addresses if symbols.name(address)[1]])
    names = [source.get(address, f"[kernel] {symbols.name(address)[0]}") for address in addresses]
    print(f"{sum(address in source for address in addresses)} of them the module's")
    if options.order:
        runs = [[names[0], 0]]
        for name in names:
            if name != runs[-1][0]:
                runs.append([name, 0])
            runs[-1][1] += 1
        counts = [tuple(run) for run in runs]
    else:
        counts = collections.Counter(names).most_common(options.lines)
    for name, count in counts:
        print(f"{count:6} {name}")


if __name__ == "__main__":
    main()
