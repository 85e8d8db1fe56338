#!/usr/bin/python3
"""Makes a copy of the toolbox's QEMU without three bugs of its emulated SVM, and prints its path: qemu-svmfix.py CACHE

1. helper_vmrun() leaves cs->exception_index set after it injected an interrupt by EVENTINJ. When the vCPU leaves the TCG loop
   before the next exit (always under icount, when a timer runs out), the guest gets that interrupt a second time, also with
   IF=0: Linux guests of any hypervisor, KVM included, then lock up. The store is dropped.
2. A guest's write to CR8 while V_IRQ is set calls cpu_interrupt() without QEMU's big lock and aborts on an assertion. The
   assertion is dropped; what it guards is an atomic OR in the vCPU's own thread.
3. do_interrupt_all() clears the valid bit alone of EVENTINJ once an exception of the guest is delivered, and the next exit copies the
   rest to EXITINTINFO. KVM looks at its type without the valid bit: an access to a device after an exception, with no exit in
   between, is taken for one during delivery, and is an internal error (suberror 3). All of it is cleared.

The machine code is found by its shape. Where a shape is not found exactly once (another build of QEMU), that fix is left out,
with a line to say so: then QEMU may be without the bug, or tests may fail by it.
"""

import hashlib
import os
import re
import shutil
import sys

NOP2 = b"\x66\x90"
NOP6 = b"\x66\x0f\x1f\x44\0\0"
XOR_EAX = b"\x31\xc0\x0f\x1f\0"
FIXES = [
    (
        "injected interrupts come twice",
        # mov %esi,exception_index(%rbx); movl $0,exception_is_int(%rbx); movq $-1,exception_next_eip(%rbx); testb $2,loglevel
        rb"(\x89\xb3....)\xc7\x83....\0\0\0\0\x48\xc7\x83....\xff\xff\xff\xff\xf6\x05....\x02",
        NOP6,
    ),
    (
        "CR8 write while V_IRQ is set aborts",
        # cpu_interrupt: call bql_locked; test %al,%al; je fail; mov ops,%rax; mov handler(%rax),%rax; add $8,%rsp; jmp *%rax
        rb"\xf3\x0f\x1e\xfa\x48\x83\xec\x08\xe8....\x84\xc0(\x74.)\x48\x8b\x05....\x48\x8b\x80....\x48\x83\xc4\x08\xff\xe0",
        NOP2,
    ),
    (
        "exceptions leave their type in EXITINTINFO",
        # and $0x7fffffff,%eax; mov %eax,%edx; mov vm_vmcb(%r15),%rax; lea 0xa8(%rax),%rsi
        rb"(\x25\xff\xff\xff\x7f)\x89\xc2\x49\x8b\x87....\x48\x8d\xb0\xa8\0\0\0",
        XOR_EAX,
    ),
]


def main():
    source = shutil.which("qemu-system-x86_64")
    with open(source, "rb") as opened:
        code = bytearray(opened.read())
    with open(__file__, "rb") as opened:
        key = hashlib.sha256(code + opened.read()).hexdigest()[:12]
    target = f"{sys.argv[1]}/qemu-svmfix-{key}"
    if not os.path.exists(target):
        for name, shape, replacement in FIXES:
            found = list(re.finditer(shape, code, re.DOTALL))
            if len(found) != 1:
                print(f"xvm: this build of QEMU is not known: not fixed: {name}", file=sys.stderr)
                continue
            code[found[0].start(1) : found[0].end(1)] = replacement
        part = f"{target}.{os.getpid()}"
        with open(part, "wb") as opened:
            opened.write(code)
        os.chmod(part, 0o755)
        os.rename(part, target)
    print(target)


main()
