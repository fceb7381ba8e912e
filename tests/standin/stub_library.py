"""A shared library that defines names and holds no code, written without a compiler.

TensorRT's Python bindings are public for every release, the libraries that they call are not.  The bindings can be
imported where libraries of the right names define the symbols whose addresses they take; nothing may be called.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

HEADER, SEGMENT, SYMBOL, ENTRY = 64, 56, 24, 16  # bytes of the structures of a 64-bit ELF file
LOAD, DYNAMIC, STACK = 1, 2, 0x6474E551  # kinds of segments
HASH, STRINGS, SYMBOLS, STRINGS_BYTES, SYMBOL_BYTES, NAME = 4, 5, 6, 10, 11, 14  # tags in the dynamic segment
MACHINES = {"x86_64": 62, "aarch64": 183}


def write(path: Path, symbols: Sequence[str], machine: str) -> None:
    """Write a library that defines ``symbols``, at least one, for a machine, named as ``platform.machine`` does."""
    strings = b"\0"
    offsets = []
    for name in (path.name, *symbols):
        offsets.append(len(strings))
        strings += name.encode() + b"\0"
    count = len(symbols) + 1  # the first symbol stands for no symbol
    table = b"\0" * SYMBOL
    for offset in offsets[1:]:
        table += struct.pack("<IBBHQQ", offset, 0x12, 0, 1, HEADER, 0)  # a global function; the address is never used
    chains = struct.pack(f"<{count + 3}I", 1, count, 1, 0, *range(2, count), 0)  # one bucket, each leads to the next

    at_dynamic = HEADER + 3 * SEGMENT
    at_symbols = at_dynamic + 7 * ENTRY
    at_chains = at_symbols + len(table)
    at_strings = at_chains + len(chains)
    end = at_strings + len(strings)
    dynamic = struct.pack(
        "<14Q", NAME, offsets[0], HASH, at_chains, SYMBOLS, at_symbols, SYMBOL_BYTES, SYMBOL,
        STRINGS, at_strings, STRINGS_BYTES, len(strings), 0, 0,
    )  # fmt: skip
    segments = b"".join(
        struct.pack("<IIQQQQQQ", kind, 6, start, start, start, size, size, alignment)  # 6: to read and write
        for kind, start, size, alignment in (
            (LOAD, 0, end, 1 << 16), (DYNAMIC, at_dynamic, len(dynamic), 8), (STACK, 0, 0, 16)
        )
    )  # fmt: skip
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 3, MACHINES[machine], 1, 0, HEADER, 0, 0, HEADER, SEGMENT, 3, 0, 0, 0
    )
    path.write_bytes(header + segments + dynamic + table + chains + strings)
