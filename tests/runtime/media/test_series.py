"""Series in CSV files, against Python's own reader and writer of them."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from mmgen.runtime import MmgenError
from mmgen.runtime.media.read import read_media
from mmgen.runtime.media.write import media_file, write_media
from mmgen.runtime.storage.schema import Media

SERIES = Media("series", (3, 2), "float32", labels=("speed", "angle, left"), units=("m/s", "rad"))
NUMBERS = np.float32([[0.1, -2], [1e-30, 300.5], [np.pi, 0]])
HEADER = 'speed,"angle, left"\n'
FILE = f"{HEADER}1,2\n3,4\n5,6\n"


def test_numbers_come_back_to_the_bit(tmp_path: Path) -> None:
    write_media(tmp_path / "a.csv", NUMBERS[None], SERIES)
    assert np.array_equal(read_media(tmp_path / "a.csv", SERIES), NUMBERS)
    with (tmp_path / "a.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["speed", "angle, left"] and np.array_equal(np.float32(rows), NUMBERS)
    assert (tmp_path / "a.csv").read_bytes() == f"{HEADER}0.1,-2.0\n1e-30,300.5\n3.1415927,0.0\n".encode()


@pytest.mark.parametrize(
    "content",
    [
        FILE,
        FILE.replace("\n", "\r\n"),
        FILE.rstrip("\n"),
        f"{FILE}\n\n",
        f"\ufeff{FILE}",  # as spreadsheets write UTF-8
        FILE.replace("1,2", '"1", 2.0 '),
        FILE.replace("1,2", "1.0000000000000000000000000000000000000001,+2e0"),
    ],
)
def test_what_other_programs_write_is_read(content: str) -> None:
    assert np.array_equal(read_media(content.encode(), SERIES), [[1, 2], [3, 4], [5, 6]])


def test_columns_without_labels_have_numbers() -> None:
    plain = Media("series", (3, 2), "float32")
    content = media_file(NUMBERS[None], ".csv", plain)
    assert content.startswith(b"channel 1,channel 2\n") and np.array_equal(read_media(content, plain), NUMBERS)


def test_a_label_may_hold_anything() -> None:
    strange = Media("series", (1, 3), "float32", labels=('a "b"', "c\nd", "größe"))
    content = media_file(np.ones((1, 1, 3), np.float32), ".csv", strange)
    assert next(csv.reader(io.StringIO(content.decode()))) == list(strange.labels)
    assert np.array_equal(read_media(content, strange), np.ones((1, 3)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (FILE.replace("speed", "velocity"), "got the columns 'velocity, angle, left', wanted a .csv file of 3 lines"),
        ('"angle, left",speed\n1,2\n3,4\n5,6\n', "got the columns 'angle, left, speed'"),
        ("1,2\n3,4\n5,6\n", "got the columns '1, 2'"),
        ("speed;angle\n1;2\n", "got the columns 'speed;angle'"),
        (f"{FILE}7,8\n", "got 4 lines of numbers"),
        (f"{HEADER}1,2\n3,4\n", "got 2 lines of numbers"),
        (HEADER, "got 0 lines of numbers"),
        (FILE.replace("3,4", "3,4,5"), "line 3 has 3 columns"),
        (FILE.replace("3,4", "3"), "line 3 has 1 columns"),
        (FILE.replace("4", "nan"), "line 3, column 'angle, left': 'nan' is no finite number"),
        (FILE.replace("4", "-inf"), "line 3, column 'angle, left': '-inf' is no finite number"),
        (FILE.replace("4", "1e39"), "line 3, column 'angle, left': '1e39' is no finite number of float32"),
        (FILE.replace("4", ""), "line 3, column 'angle, left': '' is no finite number"),
        (FILE.replace("4", "four"), "'four' is no finite number"),
        (FILE.replace("3,4", "3.5,4\0"), "can't be read (line"),
        (FILE.replace("3,4", '"3,4'), "can't be read"),
        (FILE.replace("3", "3" * 5000), "bytes are more than such a series has"),
        ("", "is empty"),
        ("\n\n\n", "got the columns"),
    ],
)
@pytest.mark.parametrize("fit", [False, True])
def test_what_is_no_such_series_is_one_line(content: str, words: str, fit: bool) -> None:
    with pytest.raises(MmgenError) as caught:
        read_media(content.encode(), SERIES, fit=fit)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["größe\n".encode("latin-1"), b"\xff\xfe" + FILE.encode("utf-16-le"), b"\x80"])
def test_what_is_not_utf_8_says_so(content: bytes) -> None:
    with pytest.raises(MmgenError, match="it is not UTF-8 at byte"):
        read_media(content, SERIES)


def test_a_file_that_is_one_hole_is_no_reason_to_fill_the_memory(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(MmgenError, match="1099511627776 bytes are more than such a series has"):
        read_media(tmp_path / "a.csv", SERIES)
