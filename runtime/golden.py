"""``golden.npz``: a small request, and what torch made of it."""

import json
import zipfile
from dataclasses import dataclass
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

    @property
    def request(self) -> dict[str, Any]:
        """Arguments of ``generate`` and ``stream``."""
        names = ("solver", "steps", "guidance", "sigmas", "seed", "noise")
        count = None if self.conditions else len(self.other)
        return {**{name: getattr(self, name) for name in names}, "count": count, **self.conditions}


ARRAYS = ("trajectory", "other", "media")
REQUEST = ("solver", "steps", "guidance", "sigmas", "seed")
CONDITION = "condition."  # prefix of conditions that are arrays


def write_golden(golden: Golden, path: Path) -> None:
    """Write a golden; the same golden gives the same bytes."""
    arrays = {name: getattr(golden, name) for name in ARRAYS}
    for name in ("noise", "codes"):
        if getattr(golden, name) is not None:
            arrays[name] = getattr(golden, name)
    plain = {}
    for name, value in golden.conditions.items():
        if isinstance(value, np.ndarray):
            arrays[CONDITION + name] = value
        else:
            plain[name] = value
    request = {name: getattr(golden, name) for name in REQUEST} | {"conditions": plain}
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
        request = json.loads(str(arrays.pop("request")))
        conditions = request.pop("conditions")
        conditions |= {n.removeprefix(CONDITION): arrays.pop(n) for n in list(arrays) if n.startswith(CONDITION)}
        return Golden(conditions, **request, **{"noise": None, **arrays})
    except (OSError, EOFError, zipfile.BadZipFile, ValueError, KeyError, TypeError) as error:
        remedy = "copy or export the bundle again"
        raise MmgenError(f"{path} can't be read as a golden ({error})", remedy=remedy) from error
