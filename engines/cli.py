"""``mmgen build``, and the engines that an export ends with."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from mmgen.engines import builder, cache, report, targets
from mmgen.runtime.backends.ort import cpu as ort
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.base.progress import Report, parts
from mmgen.runtime.builds.engine_build import Place, require_buildable
from mmgen.runtime.cli.terminal import Command, Progress, json_option, show, tell
from mmgen.runtime.files.json_records import to_json
from mmgen.runtime.storage.bundle import output_of, outputs_of, read_bundle
from mmgen.runtime.storage.schema import Axis, Bundle

# What the compiler logs, other than the errors that ours quote, is for programs that add a handler.
logging.getLogger("mmgen.tensorrt").addHandler(logging.NullHandler())

RTX = "sm86"  # any capability will do: pruning asks for the release alone


def _axes(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Axis]:
    """Parse ``NAME=N`` or ``NAME=MIN:OPT:MAX`` into ranges by name."""
    axes = {}
    for value in values:
        match = re.fullmatch(r"(\w+)=(\d+)(?::(\d+):(\d+))?", value)
        if not match:
            raise click.BadParameter(f"{value!r} is not NAME=N or NAME=MIN:OPT:MAX")
        least, usual, most = (int(number or match[2]) for number in match.groups()[1:])
        axes[match[1]] = Axis(least, usual, most)
    return axes


@click.command("build", cls=Command)
@click.argument("folder", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--target", "names", multiple=True, metavar="host|smXX|cpu",
              help="What to build for. host: this device, with TensorRT, or else TensorRT for RTX. "
              "cpu: this processor; keeps what ONNX Runtime makes of the graphs when it loads them. "
              "sm75, sm80, sm86, sm89, sm120 or sm121: a desktop GPU of that compute capability, with TensorRT for RTX "
              "and no need of a GPU; may be repeated for one engine that runs on all of them. "
              "Without it, host; on a machine without a GPU, all desktop GPUs from sm80.")  # fmt: skip
@click.option("--axis", "axes", multiple=True, callback=_axes, metavar="NAME=N|MIN:OPT:MAX",
              help="Range of an axis in place of the bundle's: B samples, G guidance branches, N evaluations; "
              "may be repeated. One number makes it static.")  # fmt: skip
@click.option("--workspace", type=click.IntRange(min=1), metavar="MIB",
              help="Device memory that the compiler may use for a layer; all of it unless given.")  # fmt: skip
@click.option("--optimization-level", "level", type=click.IntRange(0, 5),
              help="TensorRT's: 0 builds fastest, 5 searches longest; 3 unless given.")  # fmt: skip
@click.option("--want", "output_names", multiple=True, metavar="NAME",
              help="Output to build for; may be repeated; all of the bundle unless given.")  # fmt: skip
@click.option("--prune", is_flag=True,
              help="First remove engines that can't be used any more: of graphs that changed, of other releases of "
              "TensorRT for this device, damaged or unfinished ones; and graphs that ONNX Runtime optimised, likewise. "
              "Alone, it builds nothing.")  # fmt: skip
@json_option
def main(
    folder: Path,
    names: tuple[str, ...],
    axes: dict[str, Axis],
    workspace: int | None,
    level: int | None,
    prune: bool,
    output_names: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compile a bundle's graphs to TensorRT engines, or optimise them for this processor, into the bundle.

    What has been built is found again and not built twice. mmgen inspect shows the engines of a bundle.
    """
    given = {"axes": axes or None, "workspace_mib": workspace, "optimization_level": level}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    cpu = targets.CPU in names
    if cpu and (options or set(names) != {targets.CPU}):
        raise click.UsageError("--target cpu goes with no other target, and with no option of TensorRT; build twice")
    wanted = None
    if not cpu and (names or options or not prune):
        for output in _outputs(read_bundle(folder, verify=False), output_names):
            require_buildable(output)
        wanted = targets.parse(names or _possible())
    record: dict[str, Any] = {"bundle": str(folder)}
    texts = []
    with Progress() as progress:
        progress(f"reading {folder}", 0.0)
        bundle = read_bundle(folder)
        if prune:
            removed = cache.prune(bundle, _places(), ort.installed())
            record["removed"] = [{"path": str(r.path), "bytes": r.bytes, "reason": r.reason} for r in removed]
            texts.append(report.removed_text(removed))
        outputs = _outputs(bundle, output_names)
        if cpu:
            made = [graph for output, part in _in_turn(outputs, progress) for graph in ort.optimise(output, part)]
            record["optimised"] = [{"folder": str(folder), "reused": reused} for folder, reused in made]
            texts.append(_optimised_text(made))
        if wanted:
            built = {}
            for output, part in _in_turn(outputs, progress):
                place, build, reused = builder.build(output, wanted, progress=part, **options)
                built[output.output] = {"folder": str(place), "reused": reused, "build": to_json(build)}
                texts.append(_titled(output, report.text(output, place, build, reused)))
            record |= {"outputs": built} if len(bundle.outputs) > 1 else next(iter(built.values()))
    show(record, as_json, lambda: "\n\n".join(texts))


def after_export(names: Sequence[str]) -> Callable[[Path, Report], str]:
    """Return the function that builds engines when an export has written its bundle.

    Args:
        names: targets, as ``mmgen build`` takes them; none: what this machine can build, which may be nothing.

    Returns:
        A function of the bundle's folder and of a report of progress: it builds the engines, or for ``cpu`` optimises
        the graphs, and returns a report for people.  Where nothing can be built, the report is empty, and stderr says
        what to install.

    Raises:
        MmgenError: a target that can't be built here.  The function raises what ``builder.build`` does.
    """
    if set(names) == {targets.CPU}:
        return lambda folder, progress: _optimised_text([
            graph
            for output, part in _in_turn(_outputs(read_bundle(folder, verify=False)), progress)
            for graph in ort.optimise(output, part)
        ])
    found = targets.Possible(tuple(names), "") if names else targets.possible()
    wanted = targets.parse(found.names) if found.names else None

    def finish(folder: Path, progress: Report) -> str:
        if not wanted:
            tell(found.reason)
            return ""
        bundle = read_bundle(folder, verify=False)  # it has just been written
        return "\n\n".join(
            _titled(output, report.text(output, *builder.build(output, wanted, progress=part)))
            for output, part in _in_turn(_outputs(bundle), progress)
        )

    return finish


def _outputs(bundle: Bundle, names: Sequence[str] = ()) -> list[Bundle]:
    """Return the outputs of these names, or all of a bundle."""
    return [output_of(bundle, name) for name in names] or list(outputs_of(bundle).values())


def _in_turn(outputs: Sequence[Bundle], progress: Report) -> Iterator[tuple[Bundle, Report]]:
    """Pair each output with a report of progress for its share of the work, which names it where there are several."""
    names = [output.output if len(outputs) > 1 else "" for output in outputs]
    return ((output, part) for output, (_, part) in zip(outputs, parts(names, progress), strict=True))


def _titled(bundle: Bundle, text: str) -> str:
    return f"output {bundle.output}:\n{text}" if len(bundle.outputs) > 1 else text


def _optimised_text(made: Sequence[tuple[Path, bool]]) -> str:
    return "\n".join(f"{folder}: {'reused' if reused else 'built'}" for folder, reused in made)


def _possible() -> tuple[str, ...]:
    """Return what to build for by default; if it isn't the device here, stderr says why."""
    found = targets.possible()
    if not found.names:
        raise MmgenError(found.reason)
    if found.names != (targets.HOST,):
        tell(f"building for {' '.join(found.names)}: {found.reason}")
    return found.names


def _places() -> list[Place]:
    """List where this machine's engines run: its device, and every device with its release of TensorRT for RTX."""
    places = []
    for name in (targets.HOST, RTX):
        try:
            places.append(targets.parse([name]).place)
        except MmgenError:  # no device or no such library: engines for it may be somebody else's
            continue
    return places
