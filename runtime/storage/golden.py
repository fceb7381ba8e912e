"""``golden.npz``: a small request, and torch's results for it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.errors import MmgenError, said, shown
from mmgen.runtime.base.numbers import real, whole
from mmgen.runtime.files.numpy_files import NoArray, read_npz
from mmgen.runtime.files.regular import open_regular
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import MOST_STEPS, Bundle, shape_of
from mmgen.runtime.storage.tensors import CODES


@dataclass(frozen=True)
class Golden:
    """B samples, N evaluations, L the latent shape; the arrays are torch's, in float32."""

    conditions: dict[str, Any]  # as ``generate`` takes them: lists of length B, arrays (B, ...)
    solver: str
    steps: int
    guidance: float
    sigmas: str
    seed: int  # of the noise inside the loop
    noise: NDArray[np.float32] | None  # (B, *L) that the loop starts from; None: it starts from masks
    trajectory: NDArray[Any]  # (N, B, *L) latents float32, or tokens int64, after every evaluation
    other: NDArray[Any]  # (B, *L) those at the end for another seed: how much two samples differ
    media: NDArray[Any]  # (B, ...) decoded from trajectory[-1]
    codes: NDArray[np.int64] | None = None  # (B, ...) where there is a codebook
    negative: dict[str, Any] = field(default_factory=dict)  # as ``conditions``: what is guided away from
    # (N, B, *L) of tokens: where the decision to unmask a position is so close that half precision may unmask another
    # one instead; None: not known
    undecided: NDArray[np.bool_] | None = None

    @property
    def request(self) -> dict[str, Any]:
        """Arguments of ``generate`` and ``stream``."""
        names = ("solver", "steps", "guidance", "sigmas", "seed", "noise")
        count = None if self.conditions else len(self.other)
        arguments = {name: getattr(self, name) for name in (*names, "conditions", "negative")}
        return {**arguments, "count": count}


ARRAYS = ("trajectory", "other", "media")
OPTIONAL = ("noise", "codes", "undecided")
REQUEST = ("solver", "steps", "guidance", "sigmas", "seed")
GIVEN = {"conditions": "condition.", "negative": "negative."}  # with the prefixes of those that are arrays
AGAIN = "copy or export the bundle again"


def write_golden(golden: Golden, path: Path) -> None:
    """Write a golden; equal goldens give equal bytes."""
    arrays = {name: getattr(golden, name) for name in ARRAYS}
    for name in OPTIONAL:
        if getattr(golden, name) is not None:
            arrays[name] = getattr(golden, name)
    request = {name: getattr(golden, name) for name in REQUEST}
    for given, prefix in GIVEN.items():
        values = getattr(golden, given)
        arrays |= {prefix + name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        request[given] = {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}
    # Without allow_pickle, which numpy 1 would store as one more array.
    np.savez(path, request=np.array(json.dumps(request)), **arrays)


def golden_of(bundle: Bundle) -> Golden:
    """Read the golden of a bundle.

    Raises:
        MmgenError: as ``read_golden``, or an array isn't of the type and shape that this bundle generates.
    """
    path = bundle.path(bundle.golden)
    golden = read_golden(path)
    for name, (dtype, shape) in _arrays_of(bundle, golden).items():
        array, wanted = getattr(golden, name), f"{dtype} {shape}"
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
            raise MmgenError(f"{path}: {name}", got=said(array), wanted=wanted, remedy=AGAIN)
    return golden


def read_golden(path: Path) -> Golden:
    """Read a golden of any bundle.

    Raises:
        MmgenError: the file is missing, damaged, or not a golden.
    """
    try:
        with open_regular(path, remedy=AGAIN) as (file, size):
            arrays: dict[str, Any] = dict(read_npz(file, size, "biufU"))
        if (written := arrays.pop("request", None)) is None or written.dtype.kind != "U" or written.ndim:
            raise ValueError("it has no request")
        for name in arrays:
            if name not in (*ARRAYS, *OPTIONAL) and not name.startswith(tuple(GIVEN.values())):
                raise ValueError(f"it has an array {shown(name)}")
        if missing := [name for name in ARRAYS if name not in arrays]:
            raise ValueError(f"it has no array {missing[0]!r}")
        request = _request(path, json.loads(str(written)))
        for given, prefix in GIVEN.items():
            found = [name for name in arrays if name.startswith(prefix)]
            request[given] |= {name.removeprefix(prefix): arrays.pop(name) for name in found}
        return Golden(**request, **{"noise": None, **arrays})
    except (NoArray, ValueError, TypeError, RecursionError, MemoryError) as error:
        what = f"{path} can't be read as a golden ({str(error) or type(error).__name__})"
        raise MmgenError(what, remedy=AGAIN) from error


def _request(path: Path, record: object) -> dict[str, Any]:
    """Check the fields that aren't arrays, each against its type and range."""

    def what(name: str) -> str:
        return f"{path}: {name}"

    if not isinstance(record, Mapping):
        raise MmgenError(what("request"), got=shown(record), wanted="an object", remedy=AGAIN)
    record = {"negative": {}, **record}  # older goldens have no such field
    if wrong := {*REQUEST, *GIVEN} ^ set(record):
        there = "a field too many" if min(wrong) in record else "no such field"
        raise MmgenError(what(f"request: {shown(min(wrong))}"), got=there, remedy=AGAIN)
    for names, kind, wanted in ((("solver", "sigmas"), str, "a name"), (GIVEN, dict, "an object")):
        for name in names:
            if not isinstance(record[name], kind):
                raise MmgenError(what(name), got=shown(record[name]), wanted=wanted, remedy=AGAIN)
    return {
        **record,
        "steps": whole(what("steps"), record["steps"], "a whole number, at least 1", 1, MOST_STEPS, remedy=AGAIN),
        "seed": whole(what("seed"), record["seed"], "a whole number from 0", 0, remedy=AGAIN),
        "guidance": real(what("guidance"), record["guidance"], "a finite number", remedy=AGAIN),
    }


def _arrays_of(bundle: Bundle, golden: Golden) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the type and shape of each array, for the numbers of samples and evaluations that the golden has."""
    evaluations, samples = (max(len(array) if array.ndim else 0, 1) for array in (golden.trajectory, golden.other))
    latents, masked = (samples, *bundle.latent_shape), isinstance(bundle.process, Masked)
    dtype = "int64" if masked else "float32"
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {
        "trajectory": (dtype, (evaluations, *latents)),
        "other": (dtype, latents),
        "media": (bundle.media.dtype, (samples, *bundle.media.shape)),
    }
    if not masked:
        wanted["noise"] = ("float32", latents)
    elif golden.undecided is not None:
        wanted["undecided"] = ("bool", (evaluations, *latents))
    decode = bundle.graphs.get("decode")
    codes = [spec for spec in decode.outputs if spec.name == CODES] if decode else []
    if codes and golden.codes is not None:
        wanted["codes"] = (codes[0].dtype, shape_of(codes[0], {"B": samples}))
    return wanted
