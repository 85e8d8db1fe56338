# SPDX-License-Identifier: GPL-2.0
"""Guests that go on in another process, or at another time."""

import subprocess

from vm import MEGABYTE, Qemu, check, expect, expect_same, scratch, until


def snapshots():
    """savevm, loadvm"""
    with scratch("snapshots") as image:
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


MEMORY = 128 * MEGABYTE
WRITER = (
    "dd if=/dev/urandom of=/tmp/data bs=1M count=24 2>/dev/null; sha256sum /tmp/data >/tmp/sum; "
    "(while :; do dd if=/dev/zero of=/tmp/noise bs=64k count=32 2>/dev/null; done) &"
)


def goes_on(vm, expected):
    """That a guest that has come in has the memory that it had, and goes on."""
    until(lambda: vm.qmp("query-status")["status"] in ["paused", "prelaunch"], "the guest's state")
    expect_same(expected, vm.memory(MEMORY))
    vm.qmp("cont")
    vm.sh("sha256sum -c /tmp/sum")


def migrate(source, options, uri):
    """Migrates a guest that writes memory all the time to another QEMU, which is returned."""
    target = Qemu("-incoming", uri, "-S", memory="128M", **options)
    try:
        source.qmp("migrate", uri=uri)
        source.migrated()
        goes_on(target, source.memory(MEMORY))
    except BaseException:
        target.close()
        raise
    return target


def live(**options):
    """Live migration of a guest that writes memory."""
    with Qemu(memory="128M", **options) as source:
        source.booted()
        source.qmp("migrate-set-parameters", **{"max-bandwidth": 64 * MEGABYTE, "downtime-limit": 2000})
        source.sh(WRITER)
        if "dirty-ring-size" in options.get("accel", ""):
            # Refused without the ring.
            source.qmp("calc-dirty-rate", **{"calc-time": 1, "mode": "dirty-ring"})
            until(lambda: source.qmp("query-dirty-rate")["status"] == "measured", "the rate of writing")
            check(source.qmp("query-dirty-rate")["dirty-rate"] > 0, "the dirty ring has counted nothing")
        with scratch("migration") as path, migrate(source, options, f"unix:{path}") as target:
            target.power_off()


def migration():
    """live migration"""
    live()


def migration_split():
    """live migration, irqchip split, 2 CPUs"""
    live(irqchip="split", cpus=2)


def migration_dirty_ring():
    """live migration with the dirty ring, 2 CPUs"""
    live(accel=",dirty-ring-size=4096", cpus=2)


def by_file(source, target, **options):
    """Saves a guest on one device to a file and goes on with it on another."""
    with scratch("state") as file, Qemu(device=source, memory="128M", **options) as vm:
        vm.booted()
        vm.sh(WRITER)
        for device in [target, source]:
            vm.qmp("stop")
            vm.qmp("migrate", uri=f"file:{file}")
            vm.migrated()
            expected = vm.memory(MEMORY)
            other = Qemu("-incoming", f"file:{file}", "-S", device=device, memory="128M", **options)
            vm.close()
            vm.__dict__ = other.__dict__
            goes_on(vm, expected)
        vm.power_off()


def from_kvm_and_back():
    """migration by file: /dev/kvm to /dev/xvm and back"""
    # What both can do: the state of a feature that one lacks could not be put there.
    by_file("/dev/kvm", "/dev/xvm", cpu="qemu64", append="clocksource=tsc")
