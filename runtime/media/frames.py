"""A film's frames, laid out on the frames that a bundle's media has."""

import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.media.pictures import resized
from mmgen.runtime.media.source import File
from mmgen.runtime.storage.schema import Media

MOST_FRAMES = 100_000  # of a film that is spread over a bundle's frames
NOTHING = "there are no frames in it"
ROUNDING = 1e-9  # seconds, of float64
REMEDY = "cut it or change its rate first, or ask for that (--resize)"


@dataclass(frozen=True)
class Frame:
    """One frame of a film, which is shown from ``start`` to ``end``."""

    start: float  # seconds after the first frame's
    end: float
    tick: float  # seconds: how exact they are
    pixels: Callable[[], NDArray[np.uint8]]  # (H, W, 3); valid until the next frame is asked for


Frames: TypeAlias = "Generator[Frame, None, None]"


def film_of(file: File, frames: Callable[[], Frames], media: Media, fit: bool) -> NDArray[np.uint8]:
    """Read a film as uint8 (T, H, W, 3).

    With ``fit`` frames of another size are resized as pictures are, and a film of another rate is resampled in time:
    each frame is the one that is shown then.  Of one that is longer the beginning is taken, and of one that is shorter
    the last frame is repeated, both with a warning.  Where media has no rate, frames are spread evenly over the film.

    Args:
        frames: from the beginning, called anew each time; without ``fit`` of media's size.

    Raises:
        MmgenError: a film of another rate or number of frames, without ``fit``.
    """
    timed = frames() if media.rate is not None else _counted(file, frames, media.shape[0], fit)
    with closing(timed):  # at once: a suspended reader has its file, and its own filter of warnings
        return _shown(file, timed, media) if fit else _exact(file, timed, media)


def _counted(file: File, frames: Callable[[], Frames], count: int, fit: bool) -> Frames:
    """Yield frames in the time of a media without a rate: a second each, or ``count`` seconds in all."""
    there = sum(1 for _ in islice(frames(), MOST_FRAMES + 1)) if fit else count
    if there > MOST_FRAMES:
        raise file.differs(f"more than {MOST_FRAMES} frames", "cut it first")
    for index, frame in enumerate(frames()):
        yield replace(frame, start=index * count / there, end=(index + 1) * count / there, tick=0.0)


def _exact(file: File, frames: Iterator[Frame], media: Media) -> NDArray[np.uint8]:
    """Lay out a film that has media's size, rate and number of frames.

    A frame may last several times as long as media's do, for animations are written so where nothing moves; but if all
    of them did, the film would have another rate.
    """
    count, rate = media.shape[0], media.rate or 1.0
    film, begin, lengths, last = np.empty(media.shape, np.uint8), 0, list[int](), None
    for frame in frames:
        if last is not None:
            length = _length(last, frame.start, begin, rate)
            if length is None:
                raise _other_rate(file, len(lengths) + 1, frame.start)
            lengths.append(length)
            film[begin + 1 : begin + lengths[-1]] = film[begin]
            begin += lengths[-1]
        if begin >= count:
            raise file.differs(f"more than {count} frames", REMEDY)
        film[begin], last = frame.pixels(), frame
    if last is None:
        raise file.refused(NOTHING)
    lengths.append(max(1, round((last.end - last.start) * rate)))
    if len(lengths) > 1 and min(lengths) > 1:
        raise _other_rate(file, len(lengths), last.end)
    if sum(lengths) != count:
        raise file.differs(f"{sum(lengths)} frames", REMEDY)
    film[begin + 1 :] = film[begin]
    return film


def _length(frame: Frame, next_start: float, begin: int, rate: float) -> int | None:
    """Return how many of media's frames one lasts that begins with the one of index ``begin``; None: no whole number.

    The next one begins where media's does, to a tick of the file; or this one is as long, to half a tick, as in a GIF
    whose frames all have the hundredth of a second that is nearest.
    """
    length = round((next_start - frame.start) * rate)
    late = abs((begin + length) / rate - next_start) > frame.tick + ROUNDING
    uneven = abs(length / rate - (next_start - frame.start)) > frame.tick / 2 + ROUNDING
    return None if length < 1 or (late and uneven) else length


def _shown(file: File, frames: Iterator[Frame], media: Media) -> NDArray[np.uint8]:
    """Lay out any film: for each frame of media the one that is shown then."""
    count, height, width, _ = media.shape
    rate = media.rate or 1.0
    film, filled, end, shown = np.empty(media.shape, np.uint8), 0, 0.0, None
    for frame in frames:
        if frame.start + frame.tick >= count / rate:
            warnings.warn(f"{file.name}: cut to its first {count / rate:.4g} s, {count} frames", stacklevel=2)
            break
        while shown is not None and filled / rate + frame.tick < frame.start:
            film[filled] = shown
            filled += 1
        shown, end = resized(frame.pixels(), (width, height)), frame.end - frame.tick
    if shown is None:
        raise file.refused(NOTHING)
    film[filled:] = shown
    if end < (count - 1) / rate and media.rate:
        warnings.warn(f"{file.name}: its last frame is repeated up to {count / rate:.4g} s", stacklevel=2)
    return film


def _other_rate(file: File, frames: int, seconds: float) -> MmgenError:
    rate = f"about {frames / seconds:.4g} frames a second" if seconds > 0 else "frames that all begin at once"
    return file.differs(rate, REMEDY)
