# SPDX-License-Identifier: GPL-2.0
"""Disks, and small devices."""

import subprocess

from vm import MEGABYTE, Qemu, expect, scratch, until


def disk(vm, name):
    """Writes to a disk of 8 MiB and reads it again."""
    vm.sh(f"for i in 1 2 3 4 5 6 7 8 9; do [ -e /dev/{name} ] && break; sleep 1; done; test -b /dev/{name}")
    vm.sh("dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null")
    vm.sh(f"dd if=/tmp/data of=/dev/{name} bs=64k conv=fsync 2>/dev/null && echo 3 >/proc/sys/vm/drop_caches")
    vm.sh(f"cmp /tmp/data /dev/{name}")
    return vm.sh("sha256sum /tmp/data").split()[0]


def disk_test(device, module, name, **options):
    with scratch("disk") as file:
        with open(file, "wb") as opened:
            opened.truncate(8 * MEGABYTE)
        with Qemu("-drive", f"if=none,id=disk,format=raw,file={file}", "-device", device, **options) as vm:
            vm.booted()
            for each in module.split():
                vm.sh(f"load {each}")
            written = disk(vm, name)
            vm.power_off()
        found = subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True).stdout.split()[0]
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


def virtio_rng():
    """virtio-rng"""
    with Qemu("-device", "virtio-rng-pci") as vm:
        vm.booted()
        vm.sh("load virtio_rng")
        expect("4096", vm.sh("dd if=/dev/hwrng bs=4096 count=1 iflag=fullblock 2>/dev/null | wc -c"), "random bytes")
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
