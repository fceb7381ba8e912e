"""Series in CSV files: a line of names, and a line for each moment."""

import csv
import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.errors import shown
from mmgen.runtime.media.source import File
from mmgen.runtime.storage.schema import Media

NUMBER = 64  # bytes that a number may take


def read_series(file: File, media: Media) -> NDArray[np.float32]:
    """Read a series as float32 (T, C): UTF-8, numbers with a point, between commas.

    Raises:
        MmgenError: a file that isn't one, columns of other names or in another order, another number of lines, or
            numbers that aren't finite.
    """
    count, channels = media.shape
    names = columns(media)
    most = (count + 2) * channels * NUMBER + len(",".join(names).encode()) * 2
    if file.size > most:
        raise file.refused(f"{file.size} bytes are more than such a series has")
    with file.reading("it is no CSV file"):
        try:
            text = file.content.read(most).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"it is not UTF-8 at byte {error.start}") from error
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = next(lines, [])
        if header != list(names):
            raise file.differs(f"the columns {shown(', '.join(header))}", "name and order its columns so")
        rows = [_numbers(line, lines.line_num, names) for line in lines if line]
    if len(rows) != count:
        raise file.differs(f"{len(rows)} lines of numbers", "cut it or fill it up first")
    return np.array(rows, np.float32)


def series_file(series: NDArray[np.float32], media: Media) -> bytes:
    """Return float32 (T, C) as a CSV file; reading it gives the same numbers."""
    content = io.StringIO(newline="")
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(columns(media))
    writer.writerows([str(number) for number in row] for row in series)
    return content.getvalue().encode()


def columns(media: Media) -> tuple[str, ...]:
    """Return the names of a series' columns: its labels, or where it has none numbers."""
    return media.labels or tuple(f"channel {number}" for number in range(1, media.shape[1] + 1))


def _numbers(line: Sequence[str], number: int, names: Sequence[str]) -> list[float]:
    """Read a line of numbers.

    Raises:
        ValueError: more or fewer than names, or one that isn't a finite number.
    """
    if len(line) != len(names):
        raise ValueError(f"line {number} has {len(line)} columns")
    numbers = []
    for name, text in zip(names, line, strict=True):
        try:
            with np.errstate(over="ignore"):  # said below
                numbers.append(float(np.float32(text)))
        except ValueError:
            numbers.append(math.nan)
        if not math.isfinite(numbers[-1]):
            raise ValueError(f"line {number}, column {name!r}: {shown(text)} is no finite number of float32")
    return numbers
