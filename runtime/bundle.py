"""The bundle, format 1: a folder whose ``bundle.json`` says everything the runtime needs to know.

This module owns the schema.  The exporter builds these dataclasses and writes them with ``write_manifest``; everybody
else reads them with ``read_bundle``.
"""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from numpy.typing import NDArray

from mmgen.runtime.errors import MmgenError, shown
from mmgen.runtime.parallel import at_once
from mmgen.runtime.process import Process
from mmgen.runtime.records import from_json, read_json, to_json
from mmgen.runtime.schedules import Sigmas

FORMAT = "mmgen/1"
MANIFEST = "bundle.json"
TOKENIZER = "tokenizer.json"
GOLDEN = "golden.npz"
CHECKSUM = "checksum"  # of the manifest itself, a field that is not the schema's
BRIEF = 16  # digits of a hash that messages show
CHANGED = "the file changed; copy or export the bundle again"

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
K = 4  # state slots of a step graph: the current latents and up to three older quantities
Role = Literal["condition", "timestep", "step", "decode", "encode"]

# Tensor names of the graphs.  A conditioning tensor has a name of its own: it is an output of the condition graph
# and an input of the step graph; where there is no condition graph, it is the condition itself, whose ``tensor`` is
# none of the names here.  What hoisting took out of the step has names that the exporter gave: an output (R, ...) of
# the condition graph, or (N, ...) or (N, R, ...) of the timestep graph, whose item i is the step's input in row i.
# All that is float32, or integers, but what is hoisted may be float16.
STATE = "state"  # (K, B, *L) float32; slot 0 holds the latents
TRANSITION = "transition"  # (K, K + 3) float32, over [state; x0; model output; noise]
PREDICTION = "prediction"  # (2,) float32: x0 = prediction[0] x + prediction[1] output
X0_LIMIT = "x0_limit"  # (1,) float32: x0 is clamped to [-limit, limit]; infinity: never
INPUT_SCALE = "input_scale"  # (1,) float32: the denoiser sees input_scale x
TIMESTEP = "timestep"  # (1,) float32: what the denoiser is told of the time; of a masked process, if it is
GUIDANCE = "guidance"  # (G,) float32: weight of each branch, what is asked first
RESCALE = "guidance_rescale"  # (1,) float32: share of guidance's own spread that is taken back; not in every graph
NOISE = "noise"  # (B, *L) float32
KNOWN = "known"  # (2, B, *L) float32: data to keep, and the noise it has on the way
KEEP = "keep"  # (B, *L) float32: above 0 where data is kept
NEXT_LEVEL = "next_level"  # (2,) float32: what is kept becomes next_level[0] data + next_level[1] noise
NEXT_STATE = "next_state"  # (K, B, *L) float32
X0 = "x0"  # (B, *L) float32
LATENTS = "latents"  # (B, *L) float32
MEDIA = "media"  # (B, *media shape)
CODES = "codes"  # (B, ...) int64, where the decoder has a codebook

# Of a masked process, in place of the state and a row's numbers; ``masked.MaskedTable`` says what the numbers do.
TOKENS = "tokens"  # (B, *L) int64, with masks
NEXT_TOKENS = "next_tokens"  # (B, *L) int64
SHARPNESS = "sharpness"  # (1,) float32, as all numbers of a row
TOP_K = "top_k"  # (1,)
CONFIDENCE = "confidence"  # (2,)
MASKED = "masked"  # (1,)
STAY = "stay"  # (1,)
WINDOW = "window"  # (1,)
REDRAW = "redraw"  # (1,)
CHOICE = "choice"  # (B, *L) float32 uniform in [0, 1): chooses the codes
ORDER = "order"  # (B, *L) float32 uniform in [0, 1): noise of the confidence, and what stays hidden

TENSORS = frozenset({
    STATE, TRANSITION, PREDICTION, X0_LIMIT, INPUT_SCALE, TIMESTEP, GUIDANCE, RESCALE, NOISE, KNOWN, KEEP, NEXT_LEVEL,
    NEXT_STATE, X0, LATENTS, MEDIA, CODES, TOKENS, NEXT_TOKENS, SHARPNESS, TOP_K, CONFIDENCE, MASKED, STAY, WINDOW,
    REDRAW, CHOICE, ORDER,
})  # fmt: skip


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype and shape of a graph's input or output; a string is a named axis.

    B samples, G guidance branches, R = G B rows, N rows of a solver's table.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Graph:
    """One ONNX file, with external data where it has any."""

    file: str  # relative to the bundle, with '/'
    sha256: str  # of the ONNX file
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    data: str | None = None  # external weights, relative to the bundle
    data_sha256: str | None = None
    # Floating-point operations of products and convolutions, by the named axes over which they are repeated: "B G",
    # "N", or "" for once; a multiplication and an addition are two.  None: not counted, by an older exporter.
    operations: dict[str, int] | None = None
    weight_bytes: int | None = None  # that a run reads; of a table that is looked up, one sample's rows


@dataclass(frozen=True)
class Condition:
    """One input of a request.

    text: a string, encoded by ``tokenizer.json`` to int64 (length,), padded with ``pad_id``; null is "" unless given.
    class: an int in [0, count), or the null class.  array: numbers of the given shape and dtype; null is a number that
    fills it, or the file of the bundle, ``.npy``, that holds it.  The exporter takes an array there, and writes it.
    """

    name: str
    kind: Literal["text", "class", "array"]
    null: str | int | float | NDArray[Any] | None = None  # is "nothing asked" in guidance; None: it isn't guided
    length: int | None = None  # text: tokens
    pad_id: int = 0  # text
    count: int | None = None  # class: number of classes, the null class not included
    shape: tuple[int, ...] = ()  # array, without the batch axis
    dtype: str = "float32"  # array
    null_sha256: str | None = None  # array: of the file, where null is one
    graph_name: str | None = None  # of its tensor, where that can't have the condition's name

    @property
    def tensor(self) -> str:
        """Name of its tensor in the graphs."""
        return self.graph_name or self.name

    @property
    def null_file(self) -> str | None:
        """The file of the bundle that holds its null, if one does."""
        return self.null if self.kind == "array" and isinstance(self.null, str) else None


@dataclass(frozen=True)
class Media:
    """What decode makes.  Pictures are uint8 (height, width, 3)."""

    kind: Literal["image", "array"]
    shape: tuple[int, ...]  # without the batch axis
    dtype: str
    range: tuple[float, float] | None = None
    rate: float | None = None  # samples or frames per second, where time passes


@dataclass(frozen=True)
class Axis:
    """Range of a named axis, for engine profiles."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class Island:
    """A tensor that stays float32 in an fp16 bundle, and why."""

    graph: Role
    tensor: str
    reason: str


@dataclass(frozen=True)
class HalfShare:
    """How much of a graph is half precision; counted, not intended."""

    weight_bytes: float  # share of the bytes of floating-point weights, 0 to 1
    operations: float  # share of the nodes with floating-point outputs, 0 to 1


@dataclass(frozen=True)
class Precision:
    """What is half in a bundle, what isn't and why."""

    policy: Literal["fp32", "fp16"]
    half_share: dict[str, HalfShare] = field(default_factory=dict)  # by role
    islands: tuple[Island, ...] = ()


@dataclass(frozen=True)
class Hoisting:
    """What was moved from the step graph to before the loop, and what a step has less of: figures before and after."""

    weight_bytes: tuple[int, int]  # that a step reads, in float32
    operations: tuple[int, int]  # of products and convolutions in a step, for one row; a multiply-add is two
    tensors: dict[str, int]  # by name of what the graphs hand on: how many of the denoiser's tensors it holds


@dataclass(frozen=True)
class Receipt:
    """One comparison that passed before the bundle was written.

    Levels: 1 fp32 ONNX against torch; 2 fp16 against fp32, per graph; 3 the trajectory; 4 the media.
    """

    level: int
    graph: str  # role, or "loop" for level 3 and the end of the loop in level 4
    figure: str  # what was measured, e.g. "relative RMS"
    measured: float
    limit: float | None  # None: reported without a gate
    tensor: str = ""  # the worst tensor, or the place in the trajectory
    at_least: bool = False  # the limit is a lower one: PSNR in dB, shares

    @property
    def passed(self) -> bool:
        """Whether the figure is within its limit; NaN never is."""
        if self.limit is None:
            return True
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


@dataclass(frozen=True)
class Provenance:
    """Where the weights came from and what exported them."""

    source: str
    sha256: str  # over the source's weights
    versions: dict[str, str]


@dataclass(frozen=True)
class Defaults:
    """What ``generate`` uses where a request is silent."""

    solver: str
    steps: int
    guidance: float = 1.0  # 1: no guidance
    sigmas: Sigmas = "schedule"
    solver_options: dict[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """``bundle.json`` as checked data.

    ``folder``, where it was read from, and ``public_key``, a file with the key that it is signed with, aren't written.
    """

    name: str
    licence: str
    provenance: Provenance
    process: Process
    latent_shape: tuple[int, ...]
    conditions: tuple[Condition, ...]
    media: Media
    graphs: dict[str, Graph]  # by role
    axes: dict[str, Axis]
    precision: Precision
    receipts: tuple[Receipt, ...]
    defaults: Defaults
    tokenizer_sha256: str | None = None
    golden_sha256: str | None = None
    made_up: tuple[str, ...] = ()  # conditions of which the exporter had no example: the receipts are of made-up ones
    hoisting: Hoisting | None = None  # None: the step graph does all that the denoiser does
    cpu_only: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by role: why TensorRT can't build its graph
    format: str = FORMAT
    folder: Path = field(default=Path(), metadata={"transient": True}, compare=False)
    public_key: Path | None = field(default=None, metadata={"transient": True}, compare=False)

    def path(self, relative: str) -> Path:
        """A file of the bundle."""
        return self.folder / relative


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest, piece = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            digest.update(piece[:count])
    return digest.hexdigest()


def checksum_of(record: dict[str, Any]) -> str:
    """Hexadecimal SHA-256 of the manifest's other fields, as JSON without blanks and with sorted names."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_manifest(bundle: Bundle, folder: Path) -> None:
    """Write ``bundle.json`` into a folder, whole or not at all."""
    from mmgen.runtime.files import whole_file  # not for those who read

    record = to_json(bundle)
    with whole_file(folder / MANIFEST) as write:
        write((json.dumps({**record, CHECKSUM: checksum_of(record)}, indent=1) + "\n").encode())


def read_bundle(folder: AnyPath, *, verify: bool = True, public_key: AnyPath | None = None) -> Bundle:
    """Read and check a bundle.

    Args:
        folder: the ``.mmgen`` folder.
        verify: also compare every file with its hash; False checks only that the files are there.
        public_key: the file of a key that it must be signed with; engines are then taken only if they are, too.

    Raises:
        MmgenError: not a bundle or not signed with the key, unknown format, a missing or unknown field, a wrong type,
            parts that don't fit, a path that leaves the folder, a missing file, a wrong hash.
    """
    try:
        root = Path(os.fsdecode(folder))
    except TypeError as error:
        raise MmgenError("bundle", got=shown(folder), wanted="the path of a folder") from error
    manifest = root / MANIFEST
    if not os.path.isdir(root) and not _put_back(root):  # unlike Path's, isdir is false of names that no file can have
        raise MmgenError(f"bundle {root} is not there", remedy="make one with mmgen-export")
    record = read_json(manifest)
    got = record.get("format") if isinstance(record, dict) else None
    if got != FORMAT:
        raise MmgenError(
            f"{manifest}: format", got=shown(got), wanted=repr(FORMAT), remedy="export again, or update mmgen"
        )
    wanted = checksum_of({name: value for name, value in record.items() if name != CHECKSUM})
    if (checksum := record.pop(CHECKSUM, wanted)) != wanted:  # older bundles have none
        raise MmgenError(f"{manifest}: {CHECKSUM}", got=str(checksum)[:BRIEF], wanted=wanted[:BRIEF], remedy=CHANGED)
    key = None if public_key is None else Path(os.fsdecode(public_key))
    if key is not None:
        from mmgen.runtime import signing  # few ask for it

        if not verify:
            raise MmgenError("a signature proves nothing of files that aren't compared", remedy="leave verify as it is")
        signing.check(manifest, wanted.encode(), key)
    from mmgen.runtime.consistency import check_parts  # it is written in the words of this module

    bundle = from_json(Bundle, record, str(manifest))
    files = {root / _inside(file, manifest): wanted for file, wanted in _files(bundle)}
    check_parts(bundle, str(manifest))
    for path in files:
        if not os.path.isfile(path):  # unlike Path's, false of names that no file can have
            raise MmgenError(f"{path} is missing", remedy="copy the whole bundle again")
    try:
        hashes = list(at_once(sha256, files)) if verify else []
    except OSError as error:
        what = f"{error.filename} can't be read ({error.strerror})"
        raise MmgenError(what, remedy="copy the bundle again") from error
    for (path, hashed), found in zip(files.items(), hashes, strict=False):
        if found != hashed:
            raise MmgenError(
                f"{path}: sha256",
                got=found[:BRIEF],
                wanted=str(hashed)[:BRIEF],
                remedy=CHANGED,
            )
    return dataclasses.replace(bundle, folder=root, public_key=key)


def _put_back(root: Path) -> bool:
    """Whether there was a bundle that an export set aside, to replace it, and then was killed."""
    from mmgen.runtime.files import followed  # not for those who load what is there
    from mmgen.runtime.folders import put_back

    return "\0" not in str(root) and put_back(followed(root))


def _files(bundle: Bundle) -> list[tuple[str, str | None]]:
    files: list[tuple[str, str | None]] = []
    for graph in bundle.graphs.values():
        files.append((graph.file, graph.sha256))
        if graph.data:
            files.append((graph.data, graph.data_sha256))
    if bundle.tokenizer_sha256:
        files.append((TOKENIZER, bundle.tokenizer_sha256))
    if bundle.golden_sha256:
        files.append((GOLDEN, bundle.golden_sha256))
    files += [(c.null_file, c.null_sha256) for c in bundle.conditions if c.null_file is not None]
    return files


def _inside(file: str, manifest: Path) -> str:
    pure = PurePosixPath(file)
    if pure.is_absolute() or ".." in pure.parts or "\\" in file or ":" in file:
        raise MmgenError(f"{manifest}: path {file!r} leaves the bundle", remedy="do not use this bundle")
    return file
