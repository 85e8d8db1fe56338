#!/usr/bin/python3
"""Makes the initramfs of the guests in the tests of QEMU: qemu-initramfs.py KERNEL FILE; runs in the toolbox."""

import sys

import machine
from initramfs import Archive

MODULES = ["virtio_blk", "virtio_net", "virtio_rng", "virtio_balloon", "ahci", "sd_mod", "e1000e", "button", "efivarfs"]


def main():
    folder, target = sys.argv[1:]
    kernel = machine.Kernel(folder)
    archive = Archive()
    archive.console()
    machine.busybox(archive)
    for name in ["proc", "sys", "tmp", "root"]:
        archive.directory(name)
    archive.file(f"{machine.TOP}/selftests/qemu/guest-init", "init", 0o755)
    for module in MODULES:
        kernel.add(archive, module, [module])
    with open(target, "wb") as opened:
        opened.write(archive.finish())


main()
