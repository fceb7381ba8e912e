"""``golden.npz``: a small request, and what torch made of it."""

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.errors import MmgenError


@dataclass(frozen=True)
class Golden:
    """B samples, N rows of the solver's table, L the latent shape; the arrays are torch's, in float32."""

    conditions: dict[str, Any]  # as ``generate`` takes them: lists of length B, arrays (B, ...)
    solver: str
    steps: int
    guidance: float
    sigmas: str
    seed: int  # of the noise inside the loop
    noise: NDArray[np.float32] | None  # (B, *L) that the loop starts from; None: it starts from masks
    trajectory: NDArray[Any]  # (N, B, *L) latents float32, or tokens int64, after every row
    other: NDArray[Any]  # (B, *L) those at the end for another seed: how much two samples differ
    media: NDArray[Any]  # (B, ...) decoded from trajectory[-1]
    codes: NDArray[np.int64] | None = None  # (B, ...) where there is a codebook
    negative: dict[str, Any] = field(default_factory=dict)  # as ``conditions``: what is guided away from

    @property
    def request(self) -> dict[str, Any]:
        """Arguments of ``generate`` and ``stream``."""
        names = ("solver", "steps", "guidance", "sigmas", "seed", "noise")
        count = None if self.conditions else len(self.other)
        asked = {name: getattr(self, name) for name in (*names, "conditions", "negative")}
        return {**asked, "count": count}


ARRAYS = ("trajectory", "other", "media")
REQUEST = ("solver", "steps", "guidance", "sigmas", "seed")
GIVEN = {"conditions": "condition.", "negative": "negative."}  # with the prefixes of those that are arrays


def write_golden(golden: Golden, path: Path) -> None:
    """Write a golden; the same golden gives the same bytes."""
    arrays = {name: getattr(golden, name) for name in ARRAYS}
    for name in ("noise", "codes"):
        if getattr(golden, name) is not None:
            arrays[name] = getattr(golden, name)
    request = {name: getattr(golden, name) for name in REQUEST}
    for given, prefix in GIVEN.items():
        values = getattr(golden, given)
        arrays |= {prefix + name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        request[given] = {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}
    # Without allow_pickle, which numpy 1 would store as one more array.
    np.savez(path, request=np.array(json.dumps(request)), **arrays)


def read_golden(path: Path) -> Golden:
    """Read a golden.

    Raises:
        MmgenError: the file is missing, damaged, or not a golden.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        request = {"negative": {}, **json.loads(str(arrays.pop("request")))}  # older ones have nothing negative
        for given, prefix in GIVEN.items():
            found = [name for name in arrays if name.startswith(prefix)]
            request[given] |= {name.removeprefix(prefix): arrays.pop(name) for name in found}
        return Golden(**request, **{"noise": None, **arrays})
    except (OSError, EOFError, zipfile.BadZipFile, ValueError, KeyError, TypeError) as error:
        remedy = "copy or export the bundle again"
        raise MmgenError(f"{path} can't be read as a golden ({error})", remedy=remedy) from error
