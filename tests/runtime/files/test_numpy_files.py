"""Numpy's files from strangers: what numpy writes is read, and nothing else is believed."""

import io
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmgen.runtime import MmgenError
from mmgen.runtime.files import numpy_files
from mmgen.runtime.files.numpy_files import NoArray, read_npy, read_npz
from mmgen.runtime.media.arrays import read_array
from mmgen.runtime.media.pictures import read_mask

ARRAYS = [
    np.arange(12.0).reshape(3, 4), np.asfortranarray(np.eye(3)), np.float16(1), np.zeros(2, ">i4"), np.zeros((0, 3)),
    np.ones(3, bool), np.arange(4, dtype=np.uint8).reshape((2, 2, *[1] * 20)), np.array("text"), np.array(["é", "b"]),
]  # fmt: skip


def saved(array: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def header(descr: str = "'<f4'", order: str = "False", shape: str = "(2,)") -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()


def read(content: bytes, kinds: str = "biufU") -> Any:
    return read_npy(io.BytesIO(content), len(content), kinds)


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as file:
        for name, member in members.items():
            file.writestr(name, member)
    return content.getvalue()


def read_archive(content: bytes) -> Any:
    return read_npz(io.BytesIO(content), len(content))


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{np.asarray(a).dtype} {np.shape(a)}")
def test_what_numpy_saves_comes_back(array: Any) -> None:
    made = read(saved(array))
    assert made.dtype == np.asarray(array).dtype and made.shape == np.shape(array) and np.array_equal(made, array)


def test_what_numpy_saves_together_comes_back() -> None:
    content = io.BytesIO()
    np.savez(content, a=ARRAYS[0], b=ARRAYS[3])
    made = read_archive(content.getvalue())
    assert list(made) == ["a", "b"] and np.array_equal(made["a"], ARRAYS[0]) and np.array_equal(made["b"], ARRAYS[3])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "doesn't begin as one"),
        (b"\x93NUMPY\x04\x00" + bytes(100), "doesn't begin as one"),
        (b"\x93NUMPY\x02\x00" + (1 << 31).to_bytes(4, "little"), "its header has 2147483648 bytes"),
        (with_header(b"'''\n"), "its header is"),
        (with_header(b"\t\n  x\n y\n"), "its header is"),
        (with_header(b"-" * 3000 + b"1\n"), "its header is"),
        (with_header(b"(" * 4000), "its header is"),
        (with_header(b"(" * 5000), "its header has 5000 bytes"),
        (with_header(header(order="1"), bytes(8)), "its header is"),
        (with_header(header(shape="(-1,)"), bytes(8)), "its header is"),
        (with_header(header(shape="(" + "9" * 1000 + ",)"), bytes(8)), "its header is"),
        (with_header(header("[('x', '<f4')]"), bytes(8)), "its header is"),
        (with_header(header("'|O'"), bytes(8)), "it holds '|O'"),
        (with_header(header("'<c8'"), bytes(8)), "it holds '<c8'"),
        (with_header(header("'f4,f4'"), bytes(8)), "it holds 'f4,f4'"),
        (with_header(header("'(99999999999,)f4'"), bytes(8)), "it holds"),
        (with_header(header(shape="(99999999999,)"), bytes(8)), "it is cut"),
        (with_header(header(shape="(99999999999, 99999999999, 99999999999)"), bytes(8)), "it is cut"),
        (with_header(header(shape="(" + "1, " * 40 + ")"), bytes(8)), "its shape is wrong"),
        (with_header(header("'<U9999999'", shape="()"), bytes(8)), "it is cut"),
        (with_header(header("'|b1'"), b"\x01\x02"), "neither true nor false"),
        (with_header(header("'>U1'", shape="()"), b"\x00\x11\x00\x00"), "letters that no text has"),
        (saved(np.ones(3))[:-1], "it is cut"),
    ],
)
def test_what_is_no_array_is_told_before_it_is_laid_out(content: bytes, message: str) -> None:
    clock = time.perf_counter()
    with pytest.raises(NoArray, match=message.replace("|", r"\|")):
        read(content)
    assert time.perf_counter() - clock < 1


def test_numbers_alone_are_taken_where_no_text_is_wanted() -> None:
    with pytest.raises(NoArray, match="it holds '<U4'"):
        read(saved(np.array("text")), "biuf")


def test_what_is_compressed_is_not_unpacked() -> None:
    bomb = with_header(header("'|u1'", shape="(300000000,)"), bytes(300_000_000))
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        content = archive({"a.npy": bomb if compression == zipfile.ZIP_DEFLATED else saved(np.ones(3))}, compression)
        with pytest.raises(NoArray, match="something in it is compressed"):
            read_archive(content)


def test_members_that_share_their_bytes_are_refused() -> None:
    """Many names for one place are as good as compression."""
    one = archive({"a.npy": saved(np.zeros(1000))})
    at = one.index(b"PK\x01\x02")
    entry, end = one[at : one.index(b"PK\x05\x06")], one[one.index(b"PK\x05\x06") :]
    entries = b"".join(entry.replace(b"a.npy", f"{i:05}".encode()) for i in range(50))
    end = end[:8] + (50).to_bytes(2, "little") * 2 + len(entries).to_bytes(4, "little") + end[16:]
    with pytest.raises(NoArray, match="its parts overlap"):
        read_archive(one[:at] + entries + end)


def test_a_long_table_of_contents_is_not_read() -> None:
    with pytest.raises(NoArray, match="table of contents is too long"):
        read_archive(archive({f"{i:0200}": b"" for i in range(5000)}))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"PK\x05\x06" + bytes(17), b"PK\x05\x06" + b"\xff" * 18])
def test_what_is_no_archive(content: bytes) -> None:
    with pytest.raises(NoArray):
        read_archive(content)


def test_an_archive_changed_anywhere_is_an_error_or_arrays() -> None:
    content, refused = io.BytesIO(), 0
    np.savez(content, a=np.arange(3, dtype=np.int16))
    whole = content.getvalue()
    for at in range(len(whole)):
        for bits in (1, 0x40, 0xFF):
            try:
                read_archive(whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :])
            except NoArray:
                refused += 1
    assert refused > len(whole)


def test_a_file_that_is_one_hole_is_no_reason_to_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        file.write(with_header(header("'|u1'", shape="(1000000,)")))
        file.truncate(file.tell() + 1_000_000)
    assert read_array(tmp_path / "a.npy").shape == (1_000_000,)
    monkeypatch.setattr(numpy_files, "free_bytes", lambda: 900_000)
    with pytest.raises(MmgenError, match=r"a\.npy is larger than the memory, 0.001 GB"):
        read_array(tmp_path / "a.npy")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in folders")
@pytest.mark.parametrize("reader", [read_array, read_mask])
def test_nobody_is_waited_for_at_a_pipe(tmp_path: Path, reader: Any) -> None:
    os.mkfifo(tmp_path / "a.npy")
    with pytest.raises(MmgenError, match=r"a\.npy can't be read \(it is a pipe or a device\)"):
        reader(tmp_path / "a.npy")


def test_a_device_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.npy").symlink_to("/dev/zero")
    with pytest.raises(MmgenError, match="it is a pipe or a device"):
        read_array(tmp_path / "a.npy")


def test_a_name_with_a_zero_byte() -> None:
    with pytest.raises(MmgenError, match=r"can't be read .*null"):
        read_array(Path("a\0.npy"))
