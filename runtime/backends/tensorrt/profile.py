"""The choice among an engine's optimization profiles for a request."""

from collections.abc import Mapping, Sequence

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds.engine_store import build_command
from mmgen.runtime.storage.schema import Bundle, TensorSpec

Dims = tuple[int, ...]
Ranges = Mapping[str, tuple[Dims, Dims, Dims]]  # by input: its least, usual and largest shape


def choose(profiles: Sequence[Ranges], shapes: Mapping[str, Dims]) -> int | None:
    """Choose the tightest profile that holds all inputs' shapes; of two as tight the one with nearer usual shapes."""

    def rank(index: int) -> tuple[int, int, int]:
        width = distance = 0
        for name, (least, usual, largest) in profiles[index].items():
            width += sum(largest) - sum(least)
            distance += sum(abs(u - size) for u, size in zip(usual, shapes[name], strict=True))
        return width, distance, index

    return min((i for i, ranges in enumerate(profiles) if _holds(ranges, shapes)), key=rank, default=None)


def refusal(
    what: str,
    bundle: Bundle,
    specs: Sequence[TensorSpec],
    profiles: Sequence[Ranges],
    shapes: Mapping[str, Dims],
) -> MmgenError:
    """Make the error that no profile holds these shapes: of the axis, or the axes that don't go together.

    Args:
        what: names the engine, for the error.
        bundle: whose engine it is.
        specs: of the inputs.
        profiles: of the engine.
        shapes: of the inputs.
    """
    sizes: dict[str, int] = {}
    ranges: dict[str, list[tuple[int, int]]] = {}
    for spec in specs:
        for i, axis in enumerate(spec.shape):
            if isinstance(axis, str):
                sizes[axis] = shapes[spec.name][i]
                ranges[axis] = [(p[spec.name][0][i], p[spec.name][2][i]) for p in profiles]
    for axis, size in sizes.items():
        if not any(least <= size <= largest for least, largest in ranges[axis]):
            wanted = " or ".join(map(_said, _widest(ranges[axis])))
            return MmgenError(f"{what}: axis {axis}", got=size, wanted=wanted, remedy=_remedy(bundle, axis, size))
    got = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    each = (", ".join(f"{axis}={_said(ranges[axis][i])}" for axis in sizes) for i in range(len(profiles)))
    return MmgenError(f"{what}: axes", got=got, wanted=" or ".join(each), remedy=build_command(bundle))


def _holds(ranges: Ranges, shapes: Mapping[str, Dims]) -> bool:
    return all(
        all(a <= size <= b for a, size, b in zip(least, shapes[name], largest, strict=True))
        for name, (least, _, largest) in ranges.items()
    )


def _widest(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Leave out ranges that lie within another one."""
    return sorted({(a, b) for a, b in ranges if not any(c <= a and b <= d for c, d in ranges if (a, b) != (c, d))})


def _said(ends: tuple[int, int]) -> str:
    least, largest = ends
    return str(least) if least == largest else f"{least} to {largest}"


def _remedy(bundle: Bundle, axis: str, size: int) -> str:
    axes = bundle.axes
    if axis == "R" and {"B", "G"} <= set(axes):  # R = G B, the branch batch
        usual_g = axes["G"].opt
        axis, size = "B", size // usual_g if size % usual_g == 0 else size
    instead = "ask for fewer prompts at the same time" if axis == "G" else "ask for fewer samples at once"
    least, usual = (axes[axis].min, axes[axis].opt) if axis in axes else (1, 1)
    new = f"{min(least, size)}:{min(max(usual, least), size)}:{max(size, axes[axis].max if axis in axes else 1)}"
    return f"{instead}, or {build_command(bundle)} --axis {axis}={new}"
