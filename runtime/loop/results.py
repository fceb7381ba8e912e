"""The results of a request."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.request.request import Request
from mmgen.runtime.storage.schema import Media


@dataclass
class Timings:
    """Wall-clock seconds of one call."""

    encode: float = 0.0  # of the image that the request starts from, if any
    condition: float = 0.0  # with the request's transfer to the device
    timestep: float = 0.0  # what depends on the timestep and not on the latents; 0 where it was kept from before
    loop: float = 0.0  # all evaluations of the denoiser
    steps: list[float] = field(default_factory=list)  # each of them; empty where a GPU ran them all as one graph
    decode: float = 0.0

    @property
    def total(self) -> float:
        return self.encode + self.condition + self.timestep + self.loop + self.decode

    @property
    def jitter(self) -> float | None:
        """How much longer the slowest evaluation took than the median; None where they weren't timed one by one."""
        return max(self.steps) - float(np.median(self.steps)) if self.steps else None


@dataclass(frozen=True)
class Result:
    """B samples; L the latent shape."""

    media: NDArray[Any]  # (B, *media shape); pictures uint8 (B, height, width, 3)
    latents: NDArray[Any]  # (B, *L) float32; tokens int64 of a masked process
    codes: NDArray[np.int64] | None  # (B, ...), where the decoder has a codebook
    timings: Timings
    steps_asked: int
    steps: int  # of the solver's table: fewer than asked for where a deadline left no time for them
    evaluations: int  # of the denoiser that these steps take; with strength below 1, fewer than all
    evaluations_run: int  # fewer where a deadline ended the loop with the prediction, or where no more were needed
    request: Request  # as it was checked
    media_spec: Media  # what the media are
    ended_early: bool = False  # evaluations of tokens were left out that would have changed nothing
    texts: tuple[str, ...] | None = None  # B, where the media are texts

    @property
    def complete(self) -> bool:
        """Whether all requested steps were run, but for evaluations that would have changed nothing."""
        return self.steps == self.steps_asked and (self.ended_early or self.evaluations_run == self.evaluations)

    @property
    def text(self) -> str:
        """The only text.

        Raises:
            MmgenError: the media aren't texts, or there are several.
        """
        if self.texts is None:
            raise MmgenError("text of a result", got="media of another kind", wanted="text", remedy="use media")
        if len(self.texts) != 1:
            raise MmgenError("text of a result", got=f"{len(self.texts)} texts", wanted="one", remedy="use texts")
        return self.texts[0]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the media to a file, whose suffix says what it is to be; ``mmgen.runtime.media.write`` lists them.

        Several pictures lie on a sheet, films play side by side, texts follow each other, and .npy holds the array
        (B, ...); sound in a .wav file and series in a .csv file are one sample each.

        Raises:
            MmgenError: a suffix that doesn't fit the media, several samples where one fits, a package that is missing,
                or a place that can't be written.
        """
        from mmgen.runtime.media.write import write_media  # only who writes files needs it

        samples = self.texts if self.texts is not None and os.path.splitext(path)[1] != ".npy" else self.media
        write_media(path, samples, self.media_spec)

    @property
    def rows(self) -> int:
        """``evaluations``, by the name that it had first."""
        return self.evaluations

    @property
    def rows_run(self) -> int:
        """``evaluations_run``, by the name that it had first."""
        return self.evaluations_run


@dataclass(frozen=True)
class Progress:
    """The state after an evaluation of the denoiser, a row of the solver's table.

    Any thread may call its functions; they wait for their turn.  They show this evaluation until the stream goes on, or
    the last one of a stream that has ended until another request gets the memory.  Later they raise an ``MmgenError``.
    """

    evaluation: int  # from 1; those of tokens that would change nothing are left out
    evaluations: int  # that were planned
    last: bool  # none follows: all are done, the rest would change nothing, or a deadline is near
    timings: Timings  # so far
    latents: Callable[[], NDArray[Any]]  # a copy of the latents, or tokens (B, *L)
    preview: Callable[[], NDArray[Any]]  # the media (B, ...) as the denoiser now predicts it: x0, decoded
    result: Callable[[], Result]  # the latents as they are, decoded; after the last evaluation, the result
    resume: Callable[[NDArray[np.int64]], None] | None  # of tokens: start the next evaluation from these (B, *L)

    @property
    def row(self) -> int:
        """``evaluation``, by the name that it had first."""
        return self.evaluation

    @property
    def rows(self) -> int:
        """``evaluations``, by the name that it had first."""
        return self.evaluations
