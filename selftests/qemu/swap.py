# SPDX-License-Identifier: GPL-2.0
"""A guest whose memory the host swaps out."""

import contextlib
import os
import subprocess

from vm import MEGABYTE, Qemu, check, expect, scratch


# Turns the highest bit of each byte over.
FLIP = r"tr '\000-\177\200-\377' '\200-\377\000-\177'"


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@contextlib.contextmanager
def swap_space(size):
    """Swap on a block device, whose reads take their time: the fault doesn't find the page at once, as it does in compressed memory."""
    with scratch("swap") as file:
        with open(file, "wb") as opened:
            opened.write(bytes(size))
        os.chmod(file, 0o600)
        output("modprobe", "loop")
        device = output("losetup", "--find", "--show", file)
        try:
            output("mkswap", device)
            output("swapon", device)
            yield
            output("swapoff", device)
        finally:
            output("losetup", "--detach", device)


@contextlib.contextmanager
def memory_group(limit):
    """The folder of a control group with so many bytes of memory."""
    with scratch("cgroup") as root:
        os.mkdir(root)
        output("mount", "-t", "cgroup2", "none", root)
        try:
            with open(f"{root}/cgroup.subtree_control", "w", encoding="ascii") as opened:
                opened.write("+memory")
            group = f"{root}/guest"
            os.mkdir(group)
            with open(f"{group}/memory.max", "w", encoding="ascii") as opened:
                opened.write(str(limit))
            yield group
            os.rmdir(group)
        finally:
            output("umount", root)
            os.rmdir(root)


def number(file, name):
    """The number behind a name."""
    with open(file, encoding="ascii") as opened:
        return next(int(line.split()[1]) for line in opened if line.split()[0] == name)


def swapped_out():
    """memory swapped out: asynchronous page faults of a Linux guest, 2 CPUs"""
    with swap_space(256 * MEGABYTE), memory_group(64 * MEGABYTE) as group:
        with Qemu(cpus=2, memory="224M") as vm:
            with open(f"{group}/cgroup.procs", "w", encoding="ascii") as opened:
                opened.write(str(vm.process.pid))
            vm.booted()
            vm.sh("for i in 1 2 3 4 5 6 7; do dd if=/dev/urandom of=/tmp/$i bs=1M count=10 2>/dev/null; done")
            written = vm.sh("cat /tmp/? | sha256sum")
            # The host has no reason to write a page that was only read again: a write soon after must give it one.
            vm.sh(f"for i in 1 2 3 4 5 6 7; do {FLIP} </tmp/$i | dd of=/tmp/$i bs=4k conv=notrunc 2>/dev/null; done")
            # Two that read at different places: one goes on while the other waits for a page.
            vm.sh(f"(cat /tmp/? | {FLIP} | sha256sum >/root/up) & cat /tmp/7 /tmp/6 /tmp/5 /tmp/4 /tmp/3 /tmp/2 /tmp/1 >/dev/null; wait")
            expect(written, vm.sh("cat /root/up"), "what memory holds")
            told = vm.sh("awk '$1 == \"HYP:\" { print $2 + $3 }' /proc/interrupts")
            check(int(told) > 0, "the guest was told of no page")
            check(number(f"{group}/memory.stat", "pgmajfault") > 0, "nothing was swapped in")
            vm.power_off()
