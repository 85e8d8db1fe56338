# SPDX-License-Identifier: GPL-2.0
"""Network devices."""

import hashlib
import os
import socket
import subprocess
import threading

from vm import MEGABYTE, PATIENCE, Qemu, check, expect

TAP = ["tuntap add qemu0 mode tap", "address add 10.0.3.1/24 dev qemu0", "link set qemu0 up"]
DATA = 2 * MEGABYTE  # bytes that go over a network


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


def echo(listener, received):
    """Takes in one connection's bytes, and sends them back."""
    connection = listener.accept()[0]
    with connection:
        while len(received) < DATA and (piece := connection.recv(65536)):
            received += piece
        connection.sendall(received)


def vhost_work(pid):
    """How often a process's vhost thread, which is the kernel's own, was on a CPU."""
    times = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        folder = f"/proc/{pid}/task/{task}"
        with open(f"{folder}/comm", encoding="ascii") as comm, open(f"{folder}/schedstat", encoding="ascii") as stat:
            if comm.read().startswith("vhost-"):
                times += int(stat.read().split()[2])
    return times


def vhost_test(*options, **machine):
    """A TAP device, the other end of which is the emulated machine itself."""
    for command in ["modprobe tun", "modprobe vhost_net", *(f"ip {words}" for words in TAP)]:
        subprocess.run(command.split(), check=True)
    net = ["-netdev", "tap,id=net,ifname=qemu0,script=no,downscript=no,vhost=on"]
    net += ["-device", ",".join(["virtio-net-pci,netdev=net", *options])]
    try:
        with socket.create_server(("10.0.3.1", 5000)) as listener, Qemu(*net, **machine) as vm:
            listener.settimeout(PATIENCE)
            vm.booted()
            vm.sh("load virtio_net; ifconfig eth0 10.0.3.2 up")
            received = bytearray()
            server = threading.Thread(target=echo, args=[listener, received])
            server.start()
            vm.sh(f"dd if=/dev/urandom of=/tmp/data bs=64k count={DATA >> 16} 2>/dev/null")
            vm.sh("nc 10.0.3.1 5000 </tmp/data >/tmp/back; cmp /tmp/data /tmp/back")
            server.join()
            expect(hashlib.sha256(received).hexdigest(), vm.sh("sha256sum /tmp/data").split()[0], "the checksum of what came")
            check(vhost_work(vm.process.pid) > 20, "the data did not go through vhost")
            vm.power_off()
    finally:
        subprocess.run("ip tuntap del qemu0 mode tap".split(), check=True)


def vhost_net():
    """virtio-net with vhost in the kernel"""
    vhost_test()


def vhost_net_split():
    """virtio-net with vhost in the kernel, irqchip split, 2 CPUs"""
    vhost_test(irqchip="split", machine="q35", cpus=2)


def vhost_net_intx():
    """virtio-net with vhost in the kernel, by line interrupts"""
    vhost_test("vectors=0")
