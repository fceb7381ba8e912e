"""What comes out of a request."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Timings:
    """Wall-clock seconds of one call."""

    condition: float = 0.0  # with the request's way to the device
    loop: float = 0.0  # all rows of the solver's table
    steps: list[float] = field(default_factory=list)  # each row; empty where a GPU ran all of them as one graph
    decode: float = 0.0

    @property
    def total(self) -> float:
        return self.condition + self.loop + self.decode


@dataclass(frozen=True)
class Result:
    """B samples; L the latent shape."""

    media: NDArray[Any]  # (B, *media shape); pictures uint8 (B, height, width, 3)
    latents: NDArray[np.float32]  # (B, *L)
    codes: NDArray[np.int64] | None  # (B, ...), where the decoder has a codebook
    timings: Timings


@dataclass(frozen=True)
class Progress:
    """The state after a row of the table; its functions are valid until the loop goes on."""

    row: int  # from 1
    rows: int
    timings: Timings  # so far
    latents: Callable[[], NDArray[np.float32]]  # a copy of the latents (B, *L)
    preview: Callable[[], NDArray[Any]]  # the media (B, ...) as the denoiser now believes it to be: x0, decoded
    result: Callable[[], Result]  # the latents as they are, decoded; after the last row, the result

    @property
    def last(self) -> bool:
        return self.row == self.rows
