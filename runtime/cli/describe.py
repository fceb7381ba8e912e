"""What ``mmgen inspect`` says of a bundle."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.base.text_table import table
from mmgen.runtime.builds import engine_store, optimised
from mmgen.runtime.builds.engine_build import Build, GraphReport, Place
from mmgen.runtime.builds.optimised import Optimised
from mmgen.runtime.files.json_records import read_json, to_json
from mmgen.runtime.solvers.options import described
from mmgen.runtime.solvers.registry import options_of, solvers_for
from mmgen.runtime.storage.bundle import graph_bytes, outputs_of
from mmgen.runtime.storage.process import Process
from mmgen.runtime.storage.schema import MANIFEST, Bundle, Condition, Media, Receipt


def record(bundle: Bundle) -> dict[str, Any]:
    """Return the manifest; ``bytes``: size of each graph with its weights, by role; ``engines``: every build.

    ``solvers``: those that fit the process, each with its options' names.

    A build has its ``folder``, its ``build`` as ``build.json`` has it or None, and its ``problem``: None if every
    engine has its hash and was made from the graphs that are here.
    ``optimised``: the graphs that ONNX Runtime's CPU backend keeps, as ``optimised.json`` has them.
    """
    manifest: dict[str, Any] = read_json(bundle.path(MANIFEST))
    sizes = {role: graph_bytes(bundle, graph) for role, graph in bundle.graphs.items()}
    engines = [
        {"folder": str(folder), "build": None if isinstance(build, MmgenError) else to_json(build), "problem": problem}
        for folder, build, problem in _builds(bundle)
    ]
    solvers = {name: [f.name for f in fields(options_of(name, bundle.process))] for name in solvers_for(bundle.process)}
    kept = [to_json(found) for found in _kept(bundle)]
    return {**manifest, "bytes": sizes, "engines": engines, "optimised": kept, "solvers": solvers}


def summary(bundle: Bundle) -> str:
    """One line: precision, size, how much was validated, and whether only CPUs run it."""
    outputs = outputs_of(bundle).values()
    files = {file for each in outputs for graph in each.graphs.values() for file in (graph.file, graph.data) if file}
    mebibytes = sum(bundle.path(file).stat().st_size for file in files) / 2**20
    half = bundle.precision.half_share.get("step")
    share = f" ({half.weight_bytes:.1%} of the step graph's weights are half)" if half else ""
    gates = sum(receipt.limit is not None for each in outputs for receipt in each.receipts)
    passed = f"{gates} comparisons passed{_made_up(bundle)}"
    where = ", for CPUs alone" if bundle.cpu_only else ""
    return f"{bundle.precision.policy}{share}, {mebibytes:.1f} MiB of graphs, {passed}{where}"


def _made_up(bundle: Bundle) -> str:
    return f", with made-up values of {' and '.join(bundle.made_up)}" if bundle.made_up else ""


def text(bundle: Bundle) -> str:
    """All that people want to know of it."""
    defaults = bundle.defaults
    facts = [
        ("bundle", f"{bundle.name}, {bundle.format}, licence {bundle.licence}"),
        ("source", f"{bundle.provenance.source or 'unknown'}, sha256 {bundle.provenance.sha256[:16] or 'unknown'}"),
        ("made with", ", ".join(f"{name} {version}" for name, version in bundle.provenance.versions.items())),
        ("media", f"{_media(bundle.media)}, from latents {_shape(bundle.latent_shape)}"),
        ("process", _process(bundle.process)),
        *(("condition", _condition(condition)) for condition in bundle.conditions),
        ("defaults", f"solver {defaults.solver}, {defaults.steps} steps, guidance {defaults.guidance:g}"),
        ("axes", ", ".join(f"{name} {a.min}..{a.max}, best at {a.opt}" for name, a in bundle.axes.items())),
    ]
    known = [(key, value) for key, value in facts if value]
    parts = [table(known), _graphs(bundle), _tensors(bundle), _hoisting(bundle), _precision(bundle)]
    parts.append(_solvers(bundle))
    if bundle.cpu_only:
        why = [f"  {role}: {reason}" for role, reasons in bundle.cpu_only.items() for reason in reasons]
        parts.append("\n".join(["for CPUs alone, since TensorRT can't build:", *why]))
    parts.append(receipts(bundle.receipts))
    if built := _builds(bundle):
        parts.append(_engines(built))
    if kept := _kept(bundle):
        rows = [("optimised", "MiB", "made by")]
        rows += [(each.role, f"{each.bytes / 2**20:.2f}", f"ONNX Runtime {each.identity.onnxruntime}") for each in kept]
        parts.append(table(rows))
    return "\n\n".join(parts)


def text_of_all(bundle: Bundle) -> str:
    """All that people want to know of every output."""
    return "\n\n".join(f"output {name}\n\n{text(output)}" for name, output in bundle.outputs.items())


def receipts_of_all(found: Mapping[str, Sequence[Receipt]]) -> str:
    """Return the lines of each output's comparisons, under its name where there are several."""
    if len(found) == 1:
        return receipts(*found.values())
    return "\n\n".join(f"output {name}\n{receipts(each)}" for name, each in found.items())


def receipts(found: Sequence[Receipt]) -> str:
    """Return a line for each comparison: what was measured, the limit, and whether it is kept."""
    return table([("level", "graph", "figure", "measured", "limit", "where"), *map(_receipt, found)])


def place_text(place: Place) -> str:
    """Name a library and what its engines run on, in a few words."""
    match place.flavour:
        case "tensorrt-rtx":
            ascending = sorted(place.compute_capabilities, key=lambda name: int(name[2:]))
            return f"TensorRT for RTX {place.version}, {' '.join(ascending)}"
        case "tensorrt":
            return f"TensorRT {place.version}, {place.device} ({place.compute_capabilities[0]}), CUDA {place.cuda}"


def half_text(reports: Iterable[GraphReport]) -> str:
    """Which share of the bytes of floating-point weights in engines is half."""
    weights = [(report.half_weight_bytes, report.float_weight_bytes) for report in reports]
    half, both = sum(h for h, _ in weights), sum(map(sum, weights))
    return f"{half / both:.1%}" if both else "-"


def _builds(bundle: Bundle) -> list[tuple[Path, Build | MmgenError, str | None]]:
    """Every build in a bundle, and what is wrong with it."""
    return [(folder, build, _problem(bundle, folder, build)) for folder, build in engine_store.scan(bundle)]


def _problem(bundle: Bundle, folder: Path, build: Build | MmgenError) -> str | None:
    if isinstance(build, MmgenError):
        return str(engine_store.without_remedy(build))
    if changed := engine_store.outdated(bundle, build):
        return f"made from other graphs: {changed[0]}"
    try:
        engine_store.check_engines(folder, build)
    except MmgenError as error:
        return str(engine_store.without_remedy(error))
    return None


def _kept(bundle: Bundle) -> list[Optimised]:
    return [found for _, found in optimised.scan(bundle) if isinstance(found, Optimised)]


def _engines(found: list[tuple[Path, Build | MmgenError, str | None]]) -> str:
    rows = [("engines", "for", "made", "MiB", "half of weights", "state")]
    for folder, build, problem in found:
        facts = ("-", "-", "-", "-")
        if isinstance(build, Build):
            engines = build.engines.values()
            mebibytes = f"{sum(engine.bytes for engine in engines) / 2**20:.2f}"
            facts = (place_text(build.identity.place), build.created, mebibytes, half_text(e.report for e in engines))
        rows.append((folder.name, *facts, problem or "whole"))
    return table(rows)


def _process(process: Process) -> str:
    changed = [
        f"{f.name} {getattr(process, f.name)}"
        for f in fields(process)
        if f.name not in ("kind", "betas", "codes", "mask_id") and getattr(process, f.name) != f.default
    ]
    match process.kind:
        case "diffusion":
            betas = "explicit" if process.betas else process.beta_schedule
            what = f"predicts {process.prediction}, {process.train_timesteps} timesteps, {betas} betas"
        case "flow":
            what = f"noise at time {process.noise_time}, velocity {process.velocity}"
        case "edm":
            what = f"predicts {process.prediction}, sigma from {process.sigma_max:g} to {process.sigma_min:g}"
        case "masked":
            what = f"{process.codes} codes, mask {process.mask_id}"
    return "; ".join([f"{process.kind}, {what}", *changed])


def _media(media: Media) -> str:
    told = [media.kind, f"{media.dtype} {_shape(media.shape)}"]
    if media.range is not None:
        told.append("values from {:g} to {:g}".format(*media.range))
    if media.rate is not None:
        told.append(f"{media.rate:g} a second")
    if media.end_id is not None:
        told.append(f"up to token {media.end_id}")
    return ", ".join(told)


def _condition(condition: Condition) -> str:
    match condition.kind:
        case "text":
            what = f"text, {condition.length} tokens"
        case "class":
            what = f"class, 0 to {(condition.count or 1) - 1}"
        case "array":
            what = f"array, {condition.dtype} {_shape(condition.shape)}"
        case "image" | "video" | "audio" | "series":
            what = condition.kind if condition.media is None else _media(condition.media)
    null = f"null in {condition.null_file}" if condition.null_file else f"null {condition.null!r}"
    return f"{condition.name}: {what}, " + ("required" if condition.null is None else null)


def _graphs(bundle: Bundle) -> str:
    rows = [("graph", "MiB", "half of weights", "half of operations")]
    for role, graph in bundle.graphs.items():
        half = bundle.precision.half_share.get(role)
        rows.append((
            role,
            f"{graph_bytes(bundle, graph) / 2**20:.2f}",
            f"{half.weight_bytes:.1%}" if half else "-",
            f"{half.operations:.1%}" if half else "-",
        ))  # fmt: skip
    return table(rows)


def _tensors(bundle: Bundle) -> str:
    rows = [("graph", "", "tensor", "dtype", "shape")]
    for role, graph in bundle.graphs.items():
        for side, specs in (("in", graph.inputs), ("out", graph.outputs)):
            rows += [(role, side, spec.name, spec.dtype, _shape(spec.shape)) for spec in specs]
    return table(rows)


def _solvers(bundle: Bundle) -> str:
    """List what may be used in place of the default solver and its options."""
    process = bundle.process
    rows = [(name, described(options_of(name, process)) or "-") for name in solvers_for(process)]
    return table([("solver", "options"), *rows])


def _hoisting(bundle: Bundle) -> str:
    """Say how much work a step is spared, and where it is computed instead."""
    hoisting = bundle.hoisting
    if hoisting is None:
        return "nothing is hoisted: each step computes all of the denoiser"
    (weights, left), (operations, remaining) = hoisting.weight_bytes, hoisting.operations
    makers = {spec.name: role for role, graph in bundle.graphs.items() for spec in graph.outputs}
    moved = [f"  {makers[name]}: {count} tensors as {name}" for name, count in hoisting.tensors.items()]
    lines = [
        "hoisted out of the step graph:",
        f"  weights {weights / 2**20:.1f} -> {left / 2**20:.1f} MiB in float32 ({_change(weights, left)})",
        f"  products and convolutions {operations / 1e9:.2f} -> {remaining / 1e9:.2f} billion operations a row "
        f"({_change(operations, remaining)})",
    ]
    return "\n".join([*lines, *moved])


def _change(before: int, after: int) -> str:
    return f"{100 * (after / before - 1) if before else 0.0:+.0f} %"


def _precision(bundle: Bundle) -> str:
    islands: dict[tuple[str, str], list[str]] = {}
    for island in bundle.precision.islands:
        islands.setdefault((island.graph, island.reason), []).append(island.tensor)
    lines = [f"precision {bundle.precision.policy}" + (", float32 islands:" if islands else "")]
    for (graph, reason), tensors in islands.items():
        more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
        lines.append(f"  {graph}: {reason} ({tensors[0]}{more})")
    return "\n".join(lines)


def _receipt(receipt: Receipt) -> tuple[str, ...]:
    limit = "none" if receipt.limit is None else f"{'>=' if receipt.at_least else '<='} {receipt.limit:.3g}"
    figure = f"{receipt.figure} in dB" if receipt.figure == "PSNR" else receipt.figure
    where = receipt.tensor if receipt.passed else f"{receipt.tensor}: FAILED"
    return str(receipt.level), receipt.graph, figure, f"{receipt.measured:.3g}", limit, where


def _shape(shape: tuple[int | str, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
