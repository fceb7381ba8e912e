"""The shapes that engines are made for: ranges of the named axes B, G, R = G B and N.

What builds engines and what tells ``trtexec`` have them from here, so that they agree.
"""

from collections.abc import Mapping, Sequence

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds.engine_build import Flavour
from mmgen.runtime.storage.schema import Axis, Bundle, TensorSpec

Profile = dict[str, Axis]  # by axis
Shape = tuple[int, ...]
Shapes = tuple[Shape, Shape, Shape]  # the least, the usual and the largest


def profiles(bundle: Bundle, flavour: Flavour, axes: Mapping[str, Axis] | None = None) -> tuple[Profile, ...]:
    """Return optimization profiles, the one to capture first.

    TensorRT picks its kernels for a profile, so it gets the usual request as static shapes and then the whole range.
    TensorRT for RTX specialises kernels for the shapes that it meets at run time, so one range is all it needs.

    Args:
        bundle: its ``axes`` are the ranges.
        flavour: of TensorRT.
        axes: ranges in place of the bundle's; one of a single number makes the axis static.  R follows from G and B.

    Raises:
        MmgenError: an axis that the bundle doesn't have, R, or a range that isn't 1 <= min <= opt <= max.
    """
    full = {**bundle.axes, **{name: _checked(name, axis, bundle) for name, axis in (axes or {}).items()}}
    if {"B", "G", "R"} <= set(full):
        b, g = full["B"], full["G"]
        full["R"] = Axis(g.min * b.min, g.opt * b.opt, g.max * b.max)
    usual = {name: Axis(axis.opt, axis.opt, axis.opt) for name, axis in full.items()}
    return (full,) if flavour == "tensorrt-rtx" or usual == full else (usual, full)


def dynamic_shapes(inputs: Sequence[TensorSpec], profiles: Sequence[Profile]) -> list[dict[str, Shapes]]:
    """Return the shapes of a graph's inputs with named axes, by name, for each profile.

    A graph needn't have every axis, so of profiles that are the same for it there is one.
    """
    dynamic = [spec for spec in inputs if any(isinstance(n, str) for n in spec.shape)]
    found = [{spec.name: shapes(spec, profile) for spec in dynamic} for profile in profiles]
    return [each for i, each in enumerate(found) if each not in found[:i]]


def shapes(spec: TensorSpec, profile: Profile) -> Shapes:
    """Return the least, the usual and the largest shape of an input."""

    def at(which: str) -> Shape:
        return tuple(getattr(profile[n], which) if isinstance(n, str) else n for n in spec.shape)

    return at("min"), at("opt"), at("max")


def _checked(name: str, axis: Axis, bundle: Bundle) -> Axis:
    names = " or ".join(sorted(set(bundle.axes) - {"R"}))
    if name == "R" and name in bundle.axes:
        raise MmgenError("axis R is G times B", wanted=f"ranges of {names}")
    if name not in bundle.axes:
        raise MmgenError("axis", got=repr(name), wanted=names)
    if not 1 <= axis.min <= axis.opt <= axis.max:
        got = f"min {axis.min}, opt {axis.opt}, max {axis.max}"
        raise MmgenError(f"axis {name}", got=got, wanted="1 <= min <= opt <= max")
    return axis
