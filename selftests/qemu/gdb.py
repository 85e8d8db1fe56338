# SPDX-License-Identifier: GPL-2.0
"""As much of GDB's remote protocol as break- and watchpoints need."""

import struct

from vm import Stream, expect

RIP = 16


class Gdb:
    """A connection to QEMU's gdbstub. The guest stands still from the first command on."""

    def __init__(self, path, alive):
        self.stream = Stream(path, alive)

    def send(self, text):
        self.stream.write(f"${text}#{sum(text.encode()) & 0xff:02x}")
        self.stream.read_to("+")

    def receive(self):
        self.stream.read_to("$")
        answer = self.stream.read_to("#")
        while len(self.stream.text) < 2:
            self.stream.text += self.stream.socket.recv(2)
        self.stream.text = self.stream.text[2:]
        self.stream.write("+")
        return answer

    def ask(self, text):
        self.send(text)
        return self.receive()

    def ok(self, text):
        expect("OK", self.ask(text), f"answer to {text}")

    def rip(self):
        registers = bytes.fromhex(self.ask("g"))
        return struct.unpack_from("<Q", registers, RIP * 8)[0]
