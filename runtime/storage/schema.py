"""The bundle, format 1: ``bundle.json`` as dataclasses, written and read as they are by ``json_records``.

Format 2, which has several outputs, is in ``manifest``; each of its outputs is a ``Bundle``, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from mmgen.runtime.storage.process import Process

FORMAT, FORMAT_2 = "mmgen/1", "mmgen/2"
MANIFEST = "bundle.json"
TOKENIZER = "tokenizer.json"
GOLDEN = "golden.npz"

Role = str  # of a graph: one of ROLES, or INPUT or EMBED before the name of an input
ROLES = ("condition", "timestep", "step", "decode", "encode")
INPUT = "input_"  # media (B, ...) of an input to what the other graphs take for it
EMBED = "embed_"  # that to unit vectors (B, D), for retrieval
Sigmas = Literal["schedule", "karras", "exponential", "beta"]
MEDIA_KINDS = ("image", "video", "audio", "series")  # that an input may have
CODES = ("text", "codes")  # kinds of media that are the codes of a masked process, without a graph to decode them
SPARSE = {"sparse": True}  # metadata of what was added to the format: written only where it isn't the default
MOST_STEPS = 100_000  # each takes memory before anything runs


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype and shape of a graph's input or output; a string is a named axis.

    B samples, G guidance branches, R = G B the branch batch, N evaluations.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


def shape_of(spec: TensorSpec, axes: Mapping[str, int]) -> tuple[int, ...]:
    """Return a tensor's shape with its named axes filled in."""
    return tuple(axes[n] if isinstance(n, str) else n for n in spec.shape)


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
    weight_bytes: int | None = None  # that a run reads; of a lookup table, one sample's rows


@dataclass(frozen=True)
class Media:
    """The media of an output, or those that an input takes.

    image: uint8 (height, width, 3).  video: uint8 (frames, height, width, 3).  audio: float32 (samples, channels) in
    [-1, 1].  series: float32 (samples, channels), whose ``labels`` and ``units`` say what each channel is.  text: int64
    (length,), tokens of ``tokenizer``.  codes: int64, of a codebook.  array: anything else.

    ``range`` tells a program what the numbers mean; nothing here computes with it.
    """

    kind: Literal["image", "video", "audio", "series", "text", "codes", "array"]
    shape: tuple[int, ...]  # without the batch axis
    dtype: str
    range: tuple[float, float] | None = None  # least and largest value, where they are known
    rate: float | None = None  # samples or frames per second, where time passes
    labels: tuple[str, ...] = field(default=(), metadata=SPARSE)  # series: names of its channels
    units: tuple[str, ...] = field(default=(), metadata=SPARSE)  # series: units of its channels
    tokenizer: str = field(default=TOKENIZER, metadata=SPARSE)  # text: a file of the bundle
    end_id: int | None = field(default=None, metadata=SPARSE)  # text: the token that it ends with, at the latest


@dataclass(frozen=True)
class Condition:
    """One input of a request.

    text: a string, encoded by ``tokenizer`` to int64 (length,), padded with ``pad_id``; null is "" unless given.
    class: an int in [0, count), or the null class.  array: numbers of the given shape and dtype; null is a number that
    fills it, or the file of the bundle, ``.npy``, that holds it.  The exporter takes an array there, and writes it.
    image, video, audio, series: ``media``, which the graph ``input_NAME`` encodes, where there is one, to an array of
    the given shape and dtype; null is as for an array.
    """

    name: str
    kind: Literal["text", "class", "array", "image", "video", "audio", "series"]
    null: str | int | float | NDArray[Any] | None = None  # no condition, in guidance; None: it isn't guided
    length: int | None = None  # text: tokens
    pad_id: int = 0  # text
    count: int | None = None  # class: number of classes, the null class not included
    shape: tuple[int, ...] = ()  # array, or what a medium is encoded to, without the batch axis
    dtype: str = "float32"  # of that
    null_sha256: str | None = None  # of the file, where null is one
    graph_name: str | None = None  # of its tensor, where that can't have the condition's name
    media: Media | None = field(default=None, metadata=SPARSE)  # image, video, audio, series: what a request gives
    tokenizer: str = field(default=TOKENIZER, metadata=SPARSE)  # text: a file of the bundle

    @property
    def tensor(self) -> str:
        """Name of its tensor in the graphs."""
        return self.graph_name or self.name

    @property
    def null_file(self) -> str | None:
        """The file of the bundle that holds its null, if one does."""
        return self.null if self.kind not in ("text", "class") and isinstance(self.null, str) else None


@dataclass(frozen=True)
class Axis:
    """Range of a named axis, for engine profiles."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class Island:
    """A float32 exception: a tensor that stays float32 in an fp16 bundle, and why."""

    graph: Role
    tensor: str
    reason: str


@dataclass(frozen=True)
class HalfShare:
    """How much of a graph is half precision, as counted in the graph."""

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
    """What was moved from the step graph to before the loop, and what a step saves: figures before and after."""

    weight_bytes: tuple[int, int]  # that a step reads, in float32
    operations: tuple[int, int]  # of products and convolutions in a step of a branch batch of 1; a multiply-add is two
    tensors: dict[str, int]  # by name of what the graphs pass on: how many of the denoiser's tensors it holds


@dataclass(frozen=True)
class Receipt:
    """A validation record: one comparison that passed before the bundle was written.

    Levels: 1 fp32 ONNX against torch; 2 fp16 against fp32, per graph; 3 the trajectory; 4 the media.
    """

    level: int
    graph: str  # role, or "loop" for level 3 and the end of the loop in level 4
    figure: str  # what was measured, e.g. "relative RMS"
    measured: float
    limit: float | None  # None: reported without a gate
    tensor: str = ""  # the worst tensor, or the position in the trajectory
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
    """What ``generate`` uses for what a request doesn't say."""

    solver: str
    steps: int
    guidance: float = 1.0  # 1: no guidance
    sigmas: Sigmas = "schedule"
    solver_options: dict[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """A bundle, or one output of a bundle that has several: what it makes, and all that it needs for that.

    What isn't written: ``folder``, where it was read from; ``public_key``, a file with the key that it is signed with;
    ``output``, its name, and ``outputs``, all of the bundle by name, this one too.
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
    made_up: tuple[str, ...] = ()  # conditions without an example at export: the receipts are of made-up ones
    hoisting: Hoisting | None = None  # None: the step graph computes the whole denoiser
    cpu_only: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by role: why TensorRT can't build its graph
    golden: str = field(default=GOLDEN, metadata=SPARSE)  # its file
    tokenizers: dict[str, str] = field(default_factory=dict, metadata=SPARSE)  # further ones, by file: SHA-256
    format: str = FORMAT
    folder: Path = field(default=Path(), metadata={"transient": True}, compare=False)
    public_key: Path | None = field(default=None, metadata={"transient": True}, compare=False)
    output: str = field(default="", metadata={"transient": True}, compare=False)
    outputs: Mapping[str, "Bundle"] = field(
        default_factory=dict, metadata={"transient": True}, compare=False, repr=False
    )

    @property
    def tokenizer_files(self) -> dict[str, str]:
        """SHA-256 of all tokenizers, by file."""
        first = {TOKENIZER: self.tokenizer_sha256} if self.tokenizer_sha256 else {}
        return first | self.tokenizers

    def path(self, relative: str) -> Path:
        """Return the path of a file of the bundle."""
        return self.folder / relative
