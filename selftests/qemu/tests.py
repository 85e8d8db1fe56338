# SPDX-License-Identifier: GPL-2.0
"""What unmodified QEMU does on /dev/xvm. A test is a function; its first line of documentation is its name."""

import os
import subprocess

from gdb import Gdb
from vm import Qemu, check, expect, expect_same, until

MEGABYTE = 1 << 20


def boots(cpus=1, **options):
    """To userspace and, by ACPI, off."""
    with Qemu(cpus=cpus, **options) as vm:
        vm.booted()
        expect(str(cpus), vm.sh("nproc"), "CPUs")
        vm.power_off()


def boot_on():
    """boot: pc, irqchip on"""
    boots()


def boot_split():
    """boot: pc, irqchip split"""
    boots(irqchip="split")


def boot_off():
    """boot: pc, irqchip off"""
    # QEMU itself has no local APIC for KVM outside of the kernel, so that the guest can't have one.
    boots(irqchip="off", cpu="host,-apic", append="noapic")


def boot_q35():
    """boot: q35, irqchip on"""
    boots(machine="q35")


def boot_on_4():
    """boot: q35, irqchip on, 4 CPUs"""
    boots(machine="q35", cpus=4)


def boot_split_4():
    """boot: q35, irqchip split, 4 CPUs"""
    boots(machine="q35", irqchip="split", cpus=4)


def boot_epyc():
    """boot: CPU EPYC"""
    boots(cpu="EPYC")


def boot_qemu64():
    """boot: CPU qemu64"""
    boots(cpu="qemu64")


def boot_uefi():
    """boot: q35, OVMF"""
    code = "/usr/share/OVMF/OVMF_CODE_4M.fd"
    with Qemu("-drive", f"if=pflash,format=raw,readonly=on,file={code}", machine="q35", memory="256M") as vm:
        vm.booted()
        vm.sh("test -d /sys/firmware/efi")
        vm.power_off()


def disk(vm, name):
    """Writes to a disk of 8 MiB and reads it again."""
    vm.sh(f"for i in 1 2 3 4 5 6 7 8 9; do [ -e /dev/{name} ] && break; sleep 1; done; test -b /dev/{name}")
    vm.sh("dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null")
    vm.sh(f"dd if=/tmp/data of=/dev/{name} bs=64k conv=fsync 2>/dev/null && echo 3 >/proc/sys/vm/drop_caches")
    vm.sh(f"cmp /tmp/data /dev/{name}")
    return vm.sh("sha256sum /tmp/data").split()[0]


def disk_test(device, module, name, **options):
    file = "/tmp/qemu-disk"
    with open(file, "wb") as opened:
        opened.truncate(8 * MEGABYTE)
    with Qemu("-drive", f"if=none,id=disk,format=raw,file={file}", "-device", device, **options) as vm:
        vm.booted()
        for each in module.split():
            vm.sh(f"load {each}")
        written = disk(vm, name)
        vm.power_off()
    found = subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True).stdout.split()[0]
    os.unlink(file)
    expect(written, found, "the disk's checksum")


def virtio_blk():
    """virtio-blk, irqchip on"""
    disk_test("virtio-blk-pci,drive=disk", "virtio_blk", "vda")


def virtio_blk_split():
    """virtio-blk, irqchip split"""
    disk_test("virtio-blk-pci,drive=disk", "virtio_blk", "vda", irqchip="split", machine="q35")


def virtio_blk_intx():
    """virtio-blk by line interrupts (irqfd with resampling)"""
    disk_test("virtio-blk-pci,drive=disk,vectors=0", "virtio_blk", "vda")


def ahci():
    """AHCI"""
    disk_test("ide-hd,drive=disk,bus=ide.0", "ahci sd_mod", "sda", machine="q35")


def net_test(device, module):
    with Qemu("-netdev", "user,id=net", "-device", f"{device},netdev=net", machine="q35") as vm:
        vm.booted()
        for each in module.split():
            vm.sh(f"load {each}")
        vm.sh("ifconfig eth0 10.0.2.15 up")
        vm.sh("for i in 1 2 3 4 5 6 7 8 9; do ping -c 1 -W 5 10.0.2.2 >/tmp/ping && break; done; grep -q '1 packets received' /tmp/ping")
        vm.power_off()


def virtio_net():
    """virtio-net"""
    net_test("virtio-net-pci", "virtio_net")


def e1000e():
    """e1000e"""
    net_test("e1000e", "e1000e")


def virtio_rng():
    """virtio-rng"""
    with Qemu("-device", "virtio-rng-pci") as vm:
        vm.booted()
        vm.sh("load virtio_rng")
        expect("4096", vm.sh("dd if=/dev/hwrng bs=4096 count=1 iflag=fullblock 2>/dev/null | wc -c"), "random bytes")
        vm.power_off()


def vga():
    """VGA: what the guest writes is on the screen"""
    with Qemu("-vga", "std", append="console=tty0") as vm:
        vm.booted()
        vm.sh("echo HELLO >/dev/tty0")
        file = vm.path("screen")
        vm.qmp("screendump", filename=file)
        with open(file, "rb") as opened:
            pixels = opened.read()
        check(len(pixels) > 640 * 400, f"a screen of {len(pixels)} bytes")
        check(pixels.count(b"\xaa\xaa\xaa") > 100, "nothing is on the screen")
        vm.power_off()


def reboots():
    """ten reboots"""
    with Qemu() as vm:
        for _ in range(10):
            vm.booted()
            vm.serial.write("reboot -f\n")
        vm.booted()
        vm.qmp("query-status")
        expect(10, vm.events.count("RESET"), "resets")
        vm.power_off()


def balloon():
    """balloon"""
    with Qemu("-device", "virtio-balloon-pci", memory="256M") as vm:
        vm.booted()
        vm.sh("load virtio_balloon")
        for size in [160, 256]:
            vm.qmp("balloon", value=size * MEGABYTE)
            until(lambda size=size: vm.qmp("query-balloon")["actual"] == size * MEGABYTE, f"a balloon that leaves {size} MiB")
        vm.power_off()


def gdbstub():
    """gdbstub: break- and watchpoints"""
    with Qemu("-gdb", "unix:/tmp/qemu-gdb,server=on,wait=off", append="nokaslr") as vm:
        vm.booted()
        symbol = lambda name: int(vm.sh(f"grep ' {name}$' /proc/kallsyms").split()[0], 16)
        function, variable = symbol("__x64_sys_sethostname"), symbol("jiffies_64")
        gdb = Gdb("/tmp/qemu-gdb", vm.alive)
        gdb.ask("?")
        for kind in ["Z0", "Z1"]:  # by INT3, by debug register
            gdb.ok(f"{kind},{function:x},1")
            gdb.send("c")
            vm.serial.write("hostname a\n")
            check(gdb.receive().startswith("T05"), f"no stop at the breakpoint {kind}")
            expect(function, gdb.rip(), f"RIP at the breakpoint {kind}")
            gdb.ok(f"z{kind[1]},{function:x},1")
            check(gdb.ask("s").startswith("T05"), "no stop after a step")
            check(0 < gdb.rip() - function < 16, "a step went further")
            gdb.send("c")
            vm.serial.read_to("@status ")
            gdb.stream.write("\x03")
            gdb.receive()
        gdb.ok(f"Z2,{variable:x},8")
        stop = gdb.ask("c")
        check(f"watch:{variable:016x}" in stop or f"watch:{variable:x}" in stop, f"stop {stop} at the watchpoint")
        gdb.ok(f"z2,{variable:x},8")
        gdb.send("D")
        gdb.receive()
        vm.power_off()


def snapshots():
    """savevm, loadvm"""
    image = "/tmp/qemu-snapshots"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"], check=True)
    with Qemu("-drive", f"if=none,id=disk,format=qcow2,file={image}", "-device", "virtio-blk-pci,drive=disk", memory="128M") as vm:
        vm.booted()
        vm.sh("dd if=/dev/urandom of=/tmp/data bs=1M count=16 2>/dev/null; sha256sum /tmp/data >/tmp/sum; echo before >/tmp/when")
        vm.hmp("savevm one")
        vm.sh("rm /tmp/data; echo after >/tmp/when")
        vm.hmp("loadvm one")
        expect("before", vm.sh("cat /tmp/when"), "what the guest remembers")
        vm.sh("sha256sum -c /tmp/sum")
        vm.power_off()
    os.unlink(image)


WRITER = (
    "dd if=/dev/urandom of=/tmp/data bs=1M count=24 2>/dev/null; sha256sum /tmp/data >/tmp/sum; "
    "(while :; do dd if=/dev/zero of=/tmp/noise bs=64k count=32 2>/dev/null; done) &"
)


def migrate(source, options, memory, uri):
    """Migrates a guest that writes memory all the time to another QEMU, and compares all of it. Returns the other."""
    target = Qemu("-incoming", uri, "-S", memory=f"{memory}M", **options)
    try:
        source.qmp("migrate", uri=uri)
        source.migrated()
        until(lambda: target.qmp("query-status")["status"] in ["paused", "prelaunch"], "the target")
        expect_same(source.memory(memory * MEGABYTE), target.memory(memory * MEGABYTE))
        target.qmp("cont")
        target.sh("sha256sum -c /tmp/sum")
    except BaseException:
        target.close()
        raise
    return target


def live(**options):
    with Qemu(memory="128M", **options) as source:
        source.booted()
        source.qmp("migrate-set-parameters", **{"max-bandwidth": 64 * MEGABYTE, "downtime-limit": 2000})
        source.sh(WRITER)
        with migrate(source, options, 128, "unix:/tmp/qemu-migration") as target:
            target.power_off()


def migration():
    """live migration"""
    live()


def migration_split():
    """live migration, irqchip split, 2 CPUs"""
    live(irqchip="split", cpus=2)


def by_file(source, target, **options):
    """Saves a guest on one device to a file and goes on with it on another."""
    file = "/tmp/qemu-state"
    with Qemu(device=source, memory="128M", **options) as vm:
        vm.booted()
        vm.sh(WRITER)
        for device in [target, source]:
            vm.qmp("stop")
            vm.qmp("migrate", uri=f"file:{file}")
            vm.migrated()
            expected = vm.memory(128 * MEGABYTE)
            other = Qemu("-incoming", f"file:{file}", "-S", device=device, memory="128M", **options)
            vm.close()
            vm.__dict__ = other.__dict__
            until(lambda: vm.qmp("query-status")["status"] in ["paused", "prelaunch"], "the state from the file")
            expect_same(expected, vm.memory(128 * MEGABYTE))
            vm.qmp("cont")
            vm.sh("sha256sum -c /tmp/sum")
        vm.power_off()
    os.unlink(file)


def from_kvm_and_back():
    """migration by file: /dev/kvm to /dev/xvm and back"""
    # What both can do: the state of a feature that one lacks could not be put there.
    by_file("/dev/kvm", "/dev/xvm", cpu="qemu64", append="clocksource=tsc")


SHORT = [boot_on, boot_split, boot_off, migration]
ALL = [
    boot_on, boot_split, boot_off, boot_q35, boot_on_4, boot_split_4, boot_epyc, boot_qemu64, boot_uefi, virtio_blk, virtio_blk_split,
    virtio_blk_intx, virtio_net, virtio_rng, ahci, e1000e, vga, reboots, balloon, snapshots, migration, migration_split, from_kvm_and_back,
    gdbstub,
]  # fmt: skip
