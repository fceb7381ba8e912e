"""A model to a bundle: traced, converted to half precision on request, and validated against torch at every level."""

import dataclasses
import gc
import platform
import shutil
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path

from mmgen.export.base.dtypes import load
from mmgen.export.base.leftovers import nothing_left
from mmgen.export.base.lint import lint, lint_for_cpu
from mmgen.export.base.model import Model, modules
from mmgen.export.base.naming import named
from mmgen.export.base.origins import forget
from mmgen.export.base.place import placed
from mmgen.export.base.weights import check_loaded
from mmgen.export.check import check, weight_bytes
from mmgen.export.half.emulate import EmulatedHalf
from mmgen.export.half.precision import to_half
from mmgen.export.half.ranges import measure_ranges
from mmgen.export.hoisting.hoist import hoist as hoist_graphs
from mmgen.export.hoisting.unprocessed import unprocessed
from mmgen.export.processes import Jobs
from mmgen.export.proof.examples import made_up
from mmgen.export.proof.invariants import follow
from mmgen.export.proof.parts import run_torch, sources
from mmgen.export.proof.receipts import Policy, against_float, against_torch, of_trace
from mmgen.export.proof.torch_run import TorchRun
from mmgen.export.several import export_outputs
from mmgen.export.tracing.trace import describe, trace
from mmgen.runtime.backends.ort.cpu import open_backend
from mmgen.runtime.backends.ort.importing import import_onnxruntime
from mmgen.runtime.base import distribution
from mmgen.runtime.files.atomic import as_text
from mmgen.runtime.generator import Generator
from mmgen.runtime.request.nulls import write_nulls
from mmgen.runtime.solvers.registry import table as solver_table
from mmgen.runtime.storage import tensors as names
from mmgen.runtime.storage.bundle import read_bundle, write_manifest
from mmgen.runtime.storage.golden import golden_of, write_golden
from mmgen.runtime.storage.hashes import sha256
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import (
    GOLDEN,
    MANIFEST,
    TOKENIZER,
    Axis,
    Bundle,
    HalfShare,
    Island,
    Precision,
    Provenance,
    Receipt,
    Role,
)
from mmgen.runtime.verify import measure, require

Report = Callable[[str, float], None]
Check = Callable[[Path], object]  # of an ONNX file; raises

DISK = 2.5  # bytes to have free for each byte of weights: the float graphs, the half graphs, and room
MAX_B = 8  # largest batch that engines are made for
MAX_G = 4  # most branches: the condition, its negative and two more; costs only memory, for the largest request
MAX_N = 128  # most evaluations whose invariants engines compute at once
GRAPHS, FLOAT, TRACED = "graphs", "float", "traced"  # folders; all but the first are gone when the bundle is complete


def export(
    model: Model,
    out: Path,
    *,
    policy: Policy,
    islands: bool = True,
    hoist: bool = True,
    cpu_only: bool = False,
    jobs: Jobs | None = None,
    progress: Report | None = None,
) -> Bundle:
    """Export a model as a bundle.

    Args:
        model: a trained generator; its modules are put into evaluation mode.
        out: the folder to write; an older bundle there is replaced when the new one is complete.
        policy: fp16 makes weights and activations half; the state, the solver and the code search stay float32.
        islands: with fp16, keep tensors in float32 (as islands) whose measured range half precision can't represent.
        hoist: compute before the loop what is the same in every step; False leaves it in the step graph.
        cpu_only: take what TensorRT can't build, too; the bundle says what that is, and only CPUs run it.
        jobs: of a model with several outputs, how many are exported at once; None: one after the other.
        progress: called with the stage under way and the share of all work that is done.

    Raises:
        MmgenError: the model is not what it says, can't be traced, uses what TensorRT can't build, a comparison
            fails, or ``out`` can't be written.  Nothing is left behind then, and an older bundle stays.
    """
    report = progress or (lambda stage, fraction: None)
    if model.outputs:
        one = partial(export, policy=policy, islands=islands, hoist=hoist, cpu_only=cpu_only)
        return export_outputs(model, out, one, report, jobs)
    for part, module in modules(model).items():
        check_loaded(module, f"{part} of {model.name}")
    check_graph = lint_for_cpu if cpu_only else lint
    with (
        nothing_left(),
        placed(Path(out), round(DISK * weight_bytes(model))) as made,
        as_text(made / MANIFEST) as manifest,
    ):
        folder = manifest.parent
        report("checking the model", 0.0)
        model = named(check(model))
        bundle = _manifest(model, folder, policy)
        if bundle.made_up:
            invented = " and ".join(bundle.made_up)
            warnings.warn(
                f"comparisons use made-up values of {invented}: give typical requests in Model.examples", stacklevel=2
            )
        bundle, run, invariants = _leave_torch(model, bundle, folder, hoist, check_graph, report)
        del model  # its weights aren't needed from here on
        gc.collect()
        bundle = _validate_graphs(bundle, run, folder, islands, invariants, check_graph, report)
        if cpu_only:
            bundle = dataclasses.replace(bundle, cpu_only=_not_for_gpus(bundle, folder))
        report("comparing the loop and the media", 0.9)
        write_golden(run.golden, folder / GOLDEN)
        bundle = _validate_loop(dataclasses.replace(bundle, golden_sha256=sha256(folder / GOLDEN)), folder)
        report("done", 1.0)
    return dataclasses.replace(bundle, folder=Path(out))


def _leave_torch(
    model: Model, bundle: Bundle, folder: Path, hoisting: bool, check_graph: Check, report: Report
) -> tuple[Bundle, TorchRun, frozenset[str]]:
    """Run and trace a model in torch, and write every graph as float32 ONNX.

    Returns:
        The manifest, still without graphs; the golden run; names of the tensors that hoisted graphs pass to each other.
    """
    parts = sources(model)
    report("running torch", 0.05)
    run = run_torch(model, parts, bundle)
    kind = FLOAT if bundle.precision.policy == "fp16" else GRAPHS
    for i, source in enumerate(parts.values()):
        report(f"tracing {source.role}", 0.2 + 0.25 * i / len(parts))
        path = _graph(folder, TRACED if hoisting and source.role in ("condition", "step") else kind, source.role)
        program = trace(source, path)
        check_graph(path)
        of_trace(source, path, program, run.samples[source.role], bundle.process)
    if not hoisting:
        return bundle, run, frozenset()
    report("hoisting", 0.45)
    (folder / kind).mkdir(exist_ok=True)
    hoisted = hoist_graphs(folder / TRACED, folder / kind, bundle.axes["R"].opt)
    if hoisted is None:
        for file in (folder / TRACED).iterdir():
            file.rename(folder / kind / file.name)
    else:
        run = follow(run, folder / TRACED / "step.onnx", folder / kind, hoisted.packs)
        for role in ("condition", "timestep", "step"):
            if role in run.samples:
                check_graph(_graph(folder, kind, role))
        bundle = dataclasses.replace(bundle, hoisting=hoisted.summary)
    shutil.rmtree(folder / TRACED)
    return bundle, run, frozenset() if hoisted is None else frozenset(hoisted.summary.tensors)


def _validate_graphs(
    bundle: Bundle,
    run: TorchRun,
    folder: Path,
    islands: bool,
    invariants: frozenset[str],
    check_graph: Check,
    report: Report,
) -> Bundle:
    """Validate every graph alone (levels 1 and 2), with the conversion to half in between.

    Returns:
        The manifest with the graphs and their validation records (receipts).
    """
    half = bundle.precision.policy == "fp16"
    receipts: dict[str, tuple[Receipt, ...]] = {}
    kept: dict[str, tuple[Island, ...]] = {}
    shares: dict[str, HalfShare] = {}
    narrowed: frozenset[str] = frozenset()
    given = _unprocessed_names(bundle, [_graph(folder, FLOAT if half else GRAPHS, role) for role in run.samples])
    for i, (role, samples) in enumerate(reversed(run.samples.items())):  # a graph after those that read its outputs

        def part(stage: str, share: float, role: Role = role, i: int = i) -> None:
            report(f"{stage} {role}", 0.5 + 0.4 * (i + share) / len(run.samples))

        source, target = (_graph(folder, name, role) for name in (FLOAT if half else GRAPHS, GRAPHS))
        part("comparing", 0.0)
        passed, answers = against_torch(role, source, samples, bundle.process)
        receipts[role] = passed
        if half:
            part("measuring ranges of", 0.2)
            ranges = measure_ranges(source, run.feeds[role])
            part("halving", 0.5)
            halved = to_half(
                source, target, ranges,
                role=role, islands=islands, given=given, narrow_inputs=invariants, narrow_outputs=narrowed,
            )  # fmt: skip
            kept[role] = halved.islands
            shares[role] = halved.share
            narrowed |= halved.narrowed
            check_graph(target)
            part("comparing", 0.7)
            receipts[role] += against_float(role, source, target, answers, bundle.process, ranges)
    shutil.rmtree(folder / FLOAT, ignore_errors=True)
    for role in run.samples:
        forget(_graph(folder, GRAPHS, role))
    return dataclasses.replace(
        bundle,
        graphs={role: describe(_graph(folder, GRAPHS, role), folder) for role in run.samples},
        precision=dataclasses.replace(
            bundle.precision,
            half_share={role: shares[role] for role in run.samples if half},
            islands=tuple(island for role in run.samples for island in kept.get(role, ())),
        ),
        receipts=tuple(receipt for role in run.samples for receipt in receipts[role]),
    )


def _unprocessed_names(bundle: Bundle, graphs: Iterable[Path]) -> frozenset[str]:
    """Return the tensors that a request gives, or that are computed from these without a layer.

    Args:
        bundle: the manifest so far.
        graphs: in the order in which a request runs them.
    """
    given = {condition.tensor for condition in bundle.conditions}
    given |= {names.STATE, names.TIMESTEP, names.LATENTS, names.MEDIA, names.CODES, names.FEATURES}
    for path in graphs:
        graph = load(path).graph
        passing = unprocessed(graph, given)
        if path.stem in ("condition", "timestep"):
            given |= {value.name or "" for value in graph.outputs if value in passing}
    return frozenset(given)


def _not_for_gpus(bundle: Bundle, folder: Path) -> dict[str, tuple[str, ...]]:
    """Return why TensorRT can't build a graph, by role; roles that it can build are left out."""
    reasons = {role: lint_for_cpu(folder / graph.file) for role, graph in bundle.graphs.items()}
    return {role: why for role, why in reasons.items() if why}


def _validate_loop(bundle: Bundle, folder: Path) -> Bundle:
    """Validate the loop and the media (levels 3 and 4) with the final files; write the manifest and return it."""
    write_manifest(bundle, folder)
    half = bundle.precision.policy == "fp16"
    backend = EmulatedHalf(import_onnxruntime(), None) if half else open_backend("ort-cpu")
    with Generator(read_bundle(folder, verify=False), backend) as generator:
        receipts = require(measure(generator, golden_of(generator.bundle)))
    bundle = dataclasses.replace(bundle, receipts=(*bundle.receipts, *receipts))
    write_manifest(bundle, folder)
    return bundle


def _manifest(model: Model, folder: Path, policy: Policy) -> Bundle:
    """Build the manifest as far as it is known before there are graphs; write the tokenizer and array nulls."""
    tokenizers = dict(model.tokenizers) | ({TOKENIZER: model.tokenizer} if model.tokenizer is not None else {})
    for file, content in tokenizers.items():
        (folder / file).write_bytes(content)
    hashes = {file: sha256(folder / file) for file in tokenizers}
    defaults = model.defaults
    guided = defaults.guidance != 1 or any(c.null is not None for c in model.conditions)
    usual, most = 2 if guided else 1, MAX_G if model.conditions else 1
    evaluations, options = defaults.steps, defaults.solver_options
    if not isinstance(model.process, Masked):  # whose timestep graph, if any, is for this many or one more
        evaluations = len(
            solver_table(defaults.solver, model.process, defaults.steps, sigmas=defaults.sigmas, options=options)
        )
    versions = {"mmgen": distribution.version()} | {name: version(name) for name in ("onnx", "onnxscript", "torch")}
    return Bundle(
        name=model.name,
        licence=model.licence,
        provenance=Provenance(
            model.source, model.source_sha256, {**model.versions, **versions, "python": platform.python_version()}
        ),
        process=model.process,
        latent_shape=model.latent_shape,
        conditions=write_nulls(model.conditions, folder),
        media=model.media,
        graphs={},
        axes={
            "B": Axis(1, 1, MAX_B),
            "G": Axis(1, usual, most),
            "R": Axis(1, usual, most * MAX_B),
            "N": Axis(1, min(evaluations, MAX_N), MAX_N),
        },
        precision=Precision(policy),
        receipts=(),
        defaults=model.defaults,
        made_up=made_up(model),
        tokenizer_sha256=hashes.pop(TOKENIZER, None),
        tokenizers=hashes,
        folder=folder,
    )


def _graph(folder: Path, kind: str, role: str) -> Path:
    (folder / kind).mkdir(exist_ok=True)
    return folder / kind / f"{role}.onnx"
