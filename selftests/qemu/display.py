# SPDX-License-Identifier: GPL-2.0
"""What is on the guest's screen."""

from vm import Qemu, check, expect


def screen(vm):
    """The screen: its width, its height, and a list of its pixels."""
    file = vm.path("screen")
    vm.qmp("screendump", filename=file)
    with open(file, "rb") as opened:
        kind, size, depth, data = opened.read().split(b"\n", 3)
    expect((b"P6", b"255"), (kind, depth), "the screen's format")
    width, height = map(int, size.split())
    pixels = [data[i : i + 3] for i in range(0, len(data), 3)]
    expect(width * height, len(pixels), "pixels")
    return width, height, pixels


def vga_text():
    """VGA: text mode"""
    with Qemu("-vga", "std", append="console=tty0") as vm:
        vm.booted()
        vm.sh("printf '\\033[2J\\033[H\\033[?25lHELLO HELLO WORLD' >/dev/tty0")
        width, height, pixels = screen(vm)
        expect((720, 400), (width, height), "the screen's size")
        word = lambda start: [pixels[y * width + x] for y in range(16) for x in range(start * 9, (start + 5) * 9)]
        check(len(set(word(0))) == 2, "the first word is not there")
        check(word(0) == word(6), "the first and the second word differ")
        check(word(0) != word(12), "the first and the third word don't differ")
        expect(1, len(set(pixels[16 * width :])), "colours in the other lines")
        vm.power_off()


def vga_graphics():
    """VGA: graphics mode, drawn anew by the dirty log"""
    width, height = 800, 600
    # With 8 bits a pixel QEMU converts what has changed. Which colours it has is the guest's business.
    with Qemu("-vga", "std", append="vga=0x303 vt.global_cursor_default=0") as vm:
        vm.booted()
        picture = "".join(f"{i}\n" for i in range(1, 100000))[: width * height].encode()
        vm.sh(f"seq 1 99999 | head -c {width * height} >/dev/fb0")
        drawn = compare(vm, picture)
        check(len(drawn) == 11, f"{len(drawn)} colours for 11 values")
        # A line in the middle is written again, with what is in the first.
        vm.sh(f"seq 1 99999 | head -c {width} | dd of=/dev/fb0 bs={width} seek=300 2>/dev/null")
        check(picture[:width] != picture[300 * width : 301 * width], "the line is the same as before")
        compare(vm, picture[: 300 * width] + picture[:width] + picture[301 * width :])
        vm.power_off()


def compare(vm, picture):
    """That each value of a byte in the picture is the same colour everywhere on the screen, and no other is; returns value and colour."""
    pixels = screen(vm)[2]
    expect(len(picture), len(pixels), "pixels")
    colours = set(zip(picture, pixels))
    values, shown = zip(*colours)
    check(len(set(values)) == len(colours) == len(set(shown)), f"{len(set(values))} values have {len(set(shown))} colours, in {len(colours)} pairs")
    return colours
