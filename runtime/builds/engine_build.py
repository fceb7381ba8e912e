"""The identity of an engine build, and where it runs: the schema of ``engines/KEY/build.json``.

``mmgen build`` writes it next to the engines; the runtime reads it to find engines that fit this device, and to name
the field that differs where none does.
"""

from dataclasses import dataclass, field
from typing import Literal

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds.identity import key_of
from mmgen.runtime.storage.schema import Axis, Bundle

ENGINES = "engines"  # folder in a bundle
SIDECAR = "build.json"
SCHEMA = 1  # of this file and of what the runtime binds; another one means building again

Flavour = Literal["tensorrt", "tensorrt-rtx"]
FLAVOURS: tuple[Flavour, ...] = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class Place:
    """The library and the device that engines run on.  Fields that don't matter to a flavour are None."""

    flavour: Flavour
    version: str  # of TensorRT or TensorRT for RTX, in full: engines never run on another
    compute_capabilities: tuple[str, ...]  # sorted, such as ("sm86", "sm89"); for tensorrt the device's own
    system: str | None = None  # "linux x86_64"; tensorrt-rtx engines are the same on Linux and Windows
    cuda: str | None = None  # the driver's CUDA, "12.6"
    device: str | None = None  # name of the GPU
    multiprocessors: int | None = None
    memory_gib: int | None = None  # of the device, rounded


@dataclass(frozen=True)
class Options:
    """The options of a build, beyond the bundle itself."""

    profiles: tuple[dict[str, Axis], ...]  # ranges of the named axes; the first is the one to capture
    workspace_mib: int | None = None  # None: TensorRT's default, all of the device
    optimization_level: int = 3  # 0 to 5, TensorRT's


@dataclass(frozen=True)
class Identity:
    """Everything that the result of a build depends on: two builds with the same identity can replace each other."""

    graphs: dict[str, str]  # by role: SHA-256 over the ONNX file and its external data
    place: Place
    options: Options
    schema: int = SCHEMA

    @property
    def key(self) -> str:
        """Name of the build's folder."""
        return key_of(self)


@dataclass(frozen=True)
class GraphReport:
    """One engine as the compiler reported it; counts are of the strongly typed network, before fusion."""

    layers: int
    half_layers: int  # layers whose outputs are half
    float_layers: int  # layers whose outputs are float32
    half_weight_bytes: int
    float_weight_bytes: int
    islands: tuple[str, ...]  # the bundle's float32 exceptions that are float32 in the network
    seconds: float
    peak_bytes: int  # resident memory of the builder's process


@dataclass(frozen=True)
class EngineFile:
    """One serialized engine."""

    file: str  # in the build's folder
    sha256: str
    bytes: int
    report: GraphReport


@dataclass(frozen=True)
class Build:
    """``build.json``."""

    identity: Identity
    engines: dict[str, EngineFile]  # by role
    created: str  # ISO 8601, UTC
    versions: dict[str, str] = field(default_factory=dict)  # of the software that made it; not part of its identity


def require_buildable(bundle: Bundle) -> None:
    """Refuse a bundle that was made for CPUs alone.

    Raises:
        MmgenError: names the graphs that TensorRT can't build, and why.
    """
    if bundle.cpu_only:
        raise MmgenError(
            f"{bundle.folder} is for CPUs alone, since TensorRT can't build it",
            got="; ".join(f"graph {role}: {'; '.join(reasons)}" for role, reasons in bundle.cpu_only.items()),
            remedy=f"mmgen build {bundle.folder} --target cpu optimises it for this processor",
        )
