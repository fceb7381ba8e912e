"""Several pictures, or films, on one."""

import numpy as np
from numpy.typing import NDArray


def sheet(pictures: NDArray[np.uint8], columns: int | None = None, gap: int = 4) -> NDArray[np.uint8]:
    """Lay pictures (B, ..., H, W, 3) on one white picture, row by row, ``gap`` pixels apart; films play side by side.

    ``columns`` None takes the number that leaves the fewest places empty, from a square up to twice as wide.
    """
    count, *frames, height, width, channels = pictures.shape
    if count == 1:
        page: NDArray[np.uint8] = pictures[0]
        return page
    if columns is None:
        square = int(np.ceil(np.sqrt(count)))
        columns = min(range(square, 2 * square), key=lambda c: -count % c)
    rows = -(-count // columns)
    page = np.full((*frames, rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        page[..., top : top + height, left : left + width, :] = picture
    return page
