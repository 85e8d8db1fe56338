# SPDX-License-Identifier: GPL-2.0
"""What unmodified QEMU does on /dev/xvm. A test is a function; its first line of documentation is its name."""

import boots
import debug
import devices
import display
import network
import saved
import swap

# What `make test` runs.
SHORT = [boots.boot_on, boots.boot_split, boots.boot_off, saved.migration, swap.swapped_out]

ALL = [
    *[boots.boot_on, boots.boot_on_4, boots.boot_on_q35, boots.boot_on_q35_4],
    *[boots.boot_split, boots.boot_split_4, boots.boot_split_q35, boots.boot_split_q35_4],
    *[boots.boot_off, boots.boot_off_q35, boots.boot_epyc, boots.boot_qemu64, boots.boot_uefi, boots.boot_uefi_smm],
    *[boots.reboots, boots.power_button],
    *[devices.virtio_blk, devices.virtio_blk_split, devices.virtio_blk_intx, devices.ahci, devices.virtio_rng, devices.balloon],
    *[network.virtio_net, network.e1000e, network.vhost_net, network.vhost_net_split, network.vhost_net_intx],
    *[display.vga_text, display.vga_graphics],
    *[saved.snapshots, saved.migration, saved.migration_split, saved.migration_dirty_ring, saved.from_kvm_and_back],
    *[swap.swapped_out, debug.gdbstub],
]
