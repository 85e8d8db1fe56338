# SPDX-License-Identifier: GPL-2.0
"""gdbstub: break- and watchpoints."""

from gdb import Gdb
from vm import Qemu, check, expect, scratch


def gdbstub():
    """gdbstub: break- and watchpoints"""
    with scratch("gdb") as path, Qemu("-gdb", f"unix:{path},server=on,wait=off", append="nokaslr") as vm:
        vm.booted()
        symbol = lambda name: int(vm.sh(f"grep ' {name}$' /proc/kallsyms").split()[0], 16)
        function, variable = symbol("__x64_sys_sethostname"), symbol("jiffies_64")
        gdb = Gdb(path, vm.alive)
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
