#!/usr/bin/python3
"""What no run may leave in the kernel's log. As a program: kernel_log.py FILE shows such lines; exit status 1 if there are any."""

import re
import subprocess
import sys

BAD = re.compile(
    r"WARNING: |\bBUG\b|\bOops\b|Call Trace|Kernel panic|general protection fault|rcu.*(stall|self-detected)"
    r"|soft lockup|hard LOCKUP|blocked for more than|unable to handle|UBSAN|KASAN|KCSAN|refcount_t:|corruption"
    r"|page allocation failure|unregister_netdevice|Objects remaining|xvm-machine: failed"
)
# After these nothing more comes.
DEAD = re.compile(r"Kernel panic|Attempted to kill init|---\[ end Kernel panic")


def bad_lines(text):
    return [line for line in text.splitlines() if BAD.search(line)]


def demangled(text):
    """With Rust's symbols as they are in the source."""
    return subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True).stdout


def main():
    with open(sys.argv[1], encoding="utf-8", errors="replace") as opened:
        text = opened.read()
    bad = bad_lines(text)
    if bad:
        print("xvm: the kernel complained:", file=sys.stderr)
        print(demangled("\n".join(bad[:20])), file=sys.stderr)
        print(f"xvm: whole log: {sys.argv[1]}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
