# SPDX-License-Identifier: GPL-2.0
"""Machines, interrupt controllers, CPUs and firmware with which a guest boots and ends."""

import shutil

from vm import Qemu, expect, scratch, until


def boots(**options):
    """To userspace and, by ACPI, off."""
    with Qemu(**options) as vm:
        vm.booted()
        expect(str(options.get("cpus", 1)), vm.sh("nproc"), "CPUs")
        vm.power_off()


def boot_on():
    """boot: pc, irqchip on"""
    boots()


def boot_on_4():
    """boot: pc, irqchip on, 4 CPUs"""
    boots(cpus=4)


def boot_on_q35():
    """boot: q35, irqchip on"""
    boots(machine="q35")


def boot_on_q35_4():
    """boot: q35, irqchip on, 4 CPUs"""
    boots(machine="q35", cpus=4)


def boot_split():
    """boot: pc, irqchip split"""
    boots(irqchip="split")


def boot_split_4():
    """boot: pc, irqchip split, 4 CPUs"""
    boots(irqchip="split", cpus=4)


def boot_split_q35():
    """boot: q35, irqchip split"""
    boots(machine="q35", irqchip="split")


def boot_split_q35_4():
    """boot: q35, irqchip split, 4 CPUs"""
    boots(machine="q35", irqchip="split", cpus=4)


# QEMU itself has no local APIC for KVM outside of the kernel, so that the guest can't have one, nor more than one CPU.
OFF = {"irqchip": "off", "cpu": "host,-apic", "append": "noapic"}


def boot_off():
    """boot: pc, irqchip off"""
    boots(**OFF)


def boot_off_q35():
    """boot: q35, irqchip off"""
    boots(machine="q35", **OFF)


def boot_epyc():
    """boot: CPU EPYC"""
    boots(cpu="EPYC")


def boot_qemu64():
    """boot: CPU qemu64"""
    boots(cpu="qemu64")


# A variable of the firmware's, of no vendor, with the four bytes of its attributes (to be kept; there at boot and at run time).
VARIABLE = "/tmp/efi/xvm-6c3a9d2e-51f4-4f0a-9b87-2d1c50e7a943"


def boots_uefi(code, *options, **machine):
    """By OVMF, whose variables are in flash memory: the guest writes one, and finds it again after it was reset."""
    mount = "load efivarfs; mkdir -p /tmp/efi && mount -t efivarfs efivarfs /tmp/efi"
    with scratch("variables") as variables:
        shutil.copy("/usr/share/OVMF/OVMF_VARS_4M.fd", variables)
        flash = ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file=/usr/share/OVMF/{code}"]
        flash += ["-drive", f"if=pflash,unit=1,format=raw,file={variables}"]
        with Qemu(*flash, *options, memory="256M", **machine) as vm:
            vm.booted()
            vm.sh(mount)
            vm.sh(f"printf '\\7\\0\\0\\0kept' >/tmp/variable; cat /tmp/variable >{VARIABLE}; cmp /tmp/variable {VARIABLE}")
            vm.serial.write("reboot -f\n")
            vm.booted()
            vm.sh(mount)
            expect("kept", vm.sh(f"tail -c 4 {VARIABLE}"), "the variable")
            vm.power_off()


def boot_uefi():
    """boot: q35, OVMF"""
    boots_uefi("OVMF_CODE_4M.fd", machine="q35")


def boot_uefi_smm():
    """boot: q35, OVMF in system management mode, 2 CPUs"""
    # Only code in that mode can write the flash memory.
    secure = ["-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1"]
    boots_uefi("OVMF_CODE_4M.secboot.fd", *secure, machine="q35,smm=on", cpus=2)


def reboots():
    """ten reboots"""
    with Qemu() as vm:
        boots = set()
        for _ in range(10):
            vm.booted()
            boots.add(vm.sh("cat /proc/sys/kernel/random/boot_id"))
            vm.serial.write("reboot -f\n")
        vm.booted()
        boots.add(vm.sh("cat /proc/sys/kernel/random/boot_id"))
        expect(11, len(boots), "boots")
        vm.power_off()


def power_button():
    """ACPI: power button"""
    with Qemu() as vm:
        vm.booted()
        vm.sh("load button")
        presses = lambda: int(vm.sh("cat /sys/firmware/acpi/interrupts/ff_pwr_btn").split()[0])
        expect(0, presses(), "presses")
        vm.qmp("system_powerdown")
        until(lambda: presses() == 1, "the interrupt of the power button")
        vm.power_off()
