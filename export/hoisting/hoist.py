"""Work of the step graph that is the same at every step, moved out of the loop.

What depends on the condition alone joins the condition graph.  What depends on the timestep, and on the condition too
or not, becomes the timestep graph, which computes it for all evaluations at once.  The step takes the results as
inputs: small ones packed into one tensor for each type and origin, so that few tensors have to be bound; large ones
each on its own, since taking a tensor out of a pack copies it.

In an fp16 bundle they are half wherever the step reads them as half: rounded where they are computed rather than where
they are read, with the same result and half the bytes.  For an action head of 16 layers that attend to 400 tokens those
are 39 MB a step and not 79, in addition to 739 MB of weights.
"""

import math
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from mmgen.export.base.dtypes import load, name_of
from mmgen.export.base.naming import free
from mmgen.export.base.onnx_storage import save
from mmgen.export.base.operators import values
from mmgen.export.hoisting.assemble import CONDITION, JOINT, TIMESTEP, Assembly, Space
from mmgen.export.hoisting.branch_axes import BRANCH_BATCH, ELEMENTWISE, BranchAxes, behind, find_branch_axes, rank
from mmgen.export.hoisting.cut import choose
from mmgen.export.hoisting.unprocessed import unprocessed
from mmgen.export.tracing.counts import entry_bytes, operations
from mmgen.runtime.backends.memory import ALIGNMENT
from mmgen.runtime.storage import tensors as names
from mmgen.runtime.storage.schema import Hoisting

ALONE = 1 << 16  # bytes of an entry of the first axis from which on a tensor is an input of its own
AXES: Mapping[Space, tuple[str, ...]] = {CONDITION: ("R",), TIMESTEP: ("N",), JOINT: ("N", "R")}
STEP_AXES: Mapping[Space, tuple[int | str, ...]] = {CONDITION: ("G", "B"), TIMESTEP: (1,), JOINT: ("G", "B")}
PACKS: Mapping[Space, str] = {
    CONDITION: "condition_invariants",
    TIMESTEP: "timestep_invariants",
    JOINT: "joint_invariants",  # of the timestep and the condition
}
FOR_TIMESTEP = "condition_for_timestep"  # from the condition graph to the timestep graph


@dataclass(frozen=True)
class Pack:
    """Tensors as one: (R, width) from the condition, (N, width) from the timestep, (N, R, width) from both.

    One that is alone keeps its shape, behind the same axes.
    """

    name: str
    space: Space
    pieces: tuple[ir.Value, ...]  # of the step graph as it was traced, (R, ...)
    for_step: bool
    alone: bool = False

    @property
    def sizes(self) -> list[int]:
        """Return the numbers in an entry of each piece, and the padding to a multiple of the memory alignment."""
        sizes = [math.prod(behind(piece) or ()) for piece in self.pieces]
        bound_by_entry = self.space != CONDITION and not self.alone
        padding = -sum(sizes) % ALIGNMENT if bound_by_entry else 0
        return [*sizes, padding] if padding else sizes

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one entry."""
        return (behind(self.pieces[0]) or ()) if self.alone else (sum(self.sizes),)


@dataclass(frozen=True)
class Hoisted:
    """The result of hoisting: what was moved out of the step."""

    packs: tuple[Pack, ...]  # all that the graphs pass to each other
    summary: Hoisting


def hoist(source: Path, target: Path, usual: int) -> Hoisted | None:
    """Write condition, timestep and step graphs, with as little work left in the step as pays off.

    Args:
        source: a folder with ``step.onnx`` and, if the model has one, ``condition.onnx``, as they were traced.
        target: another folder, for the new versions of these two, and ``timestep.onnx`` if anything belongs there.
        usual: R, the size of the branch batch that the choice is made for.

    Returns:
        What was moved; None if nothing is worth moving, and then nothing is written.
    """
    step = load(source / "step.onnx")
    conditioning = [v.name or "" for v in step.graph.inputs if v.name not in names.TENSORS]
    branched = find_branch_axes(step.graph, conditioning)
    chosen = choose(step.graph, branched, usual)
    if not any(v not in branched.roots for node in chosen for v in node.outputs):
        return None
    before = _cost(step.graph)
    raw = unprocessed(step.graph, {names.TIMESTEP, *_unprocessed_conditioning(source, conditioning)})
    traced = source / "condition.onnx"
    condition = load(traced) if traced.exists() else None
    taken = names.TENSORS | {value.name or "" for value in step.graph.inputs}
    if condition:
        taken |= {value.name or "" for value in (*condition.graph.inputs, *condition.graph.outputs)}
    packs = _packs(branched, chosen, [node for node in step.graph if node in chosen], raw, taken)
    written = {}
    if condition or any(pack.space == CONDITION for pack in packs):
        written["condition"] = _condition_graph(condition, step, branched, chosen, packs)
    if any(pack.space != CONDITION for pack in packs):
        written["timestep"] = _timestep_graph(step, branched, chosen, packs)
    _cut_step(step, branched, chosen, [pack for pack in packs if pack.for_step])
    written["step"] = step
    target.mkdir(exist_ok=True)
    for role, model in written.items():
        save(model, target / f"{role}.onnx")
    after = _cost(step.graph)
    tensors = {pack.name: len(pack.pieces) for pack in packs}
    return Hoisted(tuple(packs), Hoisting((before[0], after[0]), (before[1], after[1]), tensors))


def _unprocessed_conditioning(source: Path, conditioning: Collection[str]) -> Collection[str]:
    """Return the conditioning that no layer has processed: conditions, or what passes the condition graph."""
    if not (source / "condition.onnx").exists():
        return conditioning
    graph = load(source / "condition.onnx").graph
    passing = unprocessed(graph, {value.name or "" for value in graph.inputs})
    return {value.name or "" for value in graph.outputs if value in passing}


def _cost(graph: ir.Graph) -> tuple[int, int]:
    """Count the bytes of weights, and the operations for one entry of the first axis."""
    weights = [v.const_value for v in graph.initializers.values() if v.uses() and v.const_value is not None]
    return sum(tensor.nbytes for tensor in weights), operations(graph)


def _packs(
    branched: BranchAxes,
    chosen: frozenset[ir.Node],
    nodes: Sequence[ir.Node],
    raw: Container[ir.Value],
    taken: Container[str],
) -> list[Pack]:
    """List what the graphs pass to each other, in the order in which it is computed, under names that aren't taken.

    What no layer has processed gets a pack of its own: it stays float32, as would everything packed with it.
    """
    groups: dict[tuple[str, Space, bool], list[ir.Value]] = {}
    alone: list[Pack] = []
    for value in (v for node in nodes for v in node.outputs if v not in branched.roots):
        space = branched.depends[value]
        assert value.dtype is not None
        kind = "" if value.dtype == ir.DataType.FLOAT else f"_{name_of(value.dtype)}"
        kind += "_unprocessed" if value in raw and not kind else ""
        readers = value.consumers()
        if any(reader not in chosen for reader in readers):
            if entry_bytes(value) >= ALONE and entry_bytes(value) % (2 * ALIGNMENT) == 0:
                alone.append(Pack(free(f"invariant_{value.name}", taken), space, (value,), True, alone=True))
            else:
                groups.setdefault((free(PACKS[space] + kind, taken), space, True), []).append(value)
        if space == CONDITION and any(reader in chosen and _space(branched, reader) == JOINT for reader in readers):
            groups.setdefault((free(FOR_TIMESTEP + kind, taken), space, False), []).append(value)
    packed = [Pack(name, space, tuple(pieces), step) for (name, space, step), pieces in groups.items()]
    return [*packed, *alone]


def _space(branched: BranchAxes, node: ir.Node) -> Space:
    return branched.depends[node.outputs[0]]


def _moved(
    step: ir.Model, branched: BranchAxes, chosen: frozenset[ir.Node], spaces: Sequence[Space]
) -> Iterator[ir.Node]:
    """Yield the chosen nodes that compute in one of the spaces, without those that only reshape inputs."""
    for node in step.graph:
        if node in chosen and node.outputs[0] not in branched.roots and _space(branched, node) in spaces:
            yield node


def _roots_read(branched: BranchAxes, chosen: frozenset[ir.Node], spaces: Sequence[Space]) -> dict[ir.Value, str]:
    """Return the conditioning tensors (R, ...), with their names, that chosen nodes of some spaces read."""
    return {
        value: name
        for value, name in branched.roots.items()
        if name != names.TIMESTEP and any(n in chosen and _space(branched, n) in spaces for n in value.consumers())
    }


def _condition_graph(
    model: ir.Model | None, step: ir.Model, branched: BranchAxes, chosen: frozenset[ir.Node], packs: Sequence[Pack]
) -> ir.Model:
    """Build the condition graph with the step's work added, or one of that work alone."""
    needed = _roots_read(branched, chosen, [CONDITION])
    if model is None:
        model = _new("condition", step)
        assembly = Assembly(model.graph, branched)
        tensors = _inputs(assembly, step, needed.values())
        existing = False
    else:
        assembly = Assembly(model.graph, branched)
        tensors = {value.name or "": value for value in model.graph.outputs}
        existing = True
    for root, name in needed.items():
        tensor = tensors[name]
        if behind(tensor) != behind(root):
            tensor = assembly.reshape(tensor, behind(root) or (), "R")
        assembly.define(root, CONDITION, tensor)
        assembly.source(CONDITION, tensor)
    for node in _moved(step, branched, chosen, [CONDITION]):
        assembly.move(node, CONDITION)
    if existing:
        read = _still_read(step, branched, chosen)
        kept = [value for value in model.graph.outputs if value.name in read]
        model.graph.outputs.clear()
        model.graph.outputs.extend(kept)
    for pack in packs:
        if pack.space == CONDITION:
            assembly.output(pack.name, _joined(assembly, pack), ["R", *pack.shape])
    RemoveUnusedNodesPass()(model)
    return model


def _inputs(assembly: Assembly, step: ir.Model, wanted: Iterable[str]) -> dict[str, ir.Value]:
    """Add conditioning tensors (G, B, ...) of the step as inputs (R, ...), otherwise in their own shapes."""
    given = {value.name: value for value in step.graph.inputs}
    sizes = {name: [int(size) for size in (given[name].shape or ())[2:]] for name in wanted}  # type: ignore[arg-type]
    return {name: assembly.input(name, given[name].dtype, ["R", *rest]) for name, rest in sizes.items()}


def _still_read(step: ir.Model, branched: BranchAxes, chosen: frozenset[ir.Node]) -> set[str]:
    """Return the names of the conditioning tensors that the step or the timestep graph reads as they are."""
    read = set(_roots_read(branched, chosen, [JOINT]).values())
    for value in step.graph.inputs:
        for node in value.consumers():
            root = branched.roots.get(node.outputs[0]) == value.name
            readers = node.outputs[0].consumers() if root else ()
            if not root or any(reader not in chosen for reader in readers):
                read.add(value.name or "")
    return read


def _timestep_graph(
    step: ir.Model, branched: BranchAxes, chosen: frozenset[ir.Node], packs: Sequence[Pack]
) -> ir.Model:
    """Build the graph from timesteps (N,), and what it needs of the condition (R, ...), to all that depends on them."""
    model = _new("timestep", step)
    assembly = Assembly(model.graph, branched)
    timestep = assembly.input(names.TIMESTEP, ir.DataType.FLOAT, ["N"])
    assembly.source(TIMESTEP, timestep)
    for root, name in branched.roots.items():
        if name == names.TIMESTEP:
            assembly.define(root, TIMESTEP, timestep)
    needed = _roots_read(branched, chosen, [JOINT])
    tensors = _inputs(assembly, step, needed.values())
    for root, name in needed.items():
        tensor = tensors[name]
        if behind(tensor) != behind(root):
            tensor = assembly.reshape(tensor, behind(root) or (), "R")
        assembly.define(root, CONDITION, tensor)
        assembly.source(CONDITION, tensor)
    for pack in packs:
        if not pack.for_step:
            tensor = assembly.input(pack.name, pack.pieces[0].dtype, ["R", *pack.shape])
            assembly.source(CONDITION, tensor)
            _unpack(assembly, pack, tensor, "R")
    for node in _moved(step, branched, chosen, [TIMESTEP, JOINT]):
        assembly.move(node, _space(branched, node))
    for pack in packs:
        if pack.space == CONDITION:
            continue
        joined = _joined(assembly, pack)
        if pack.space == JOINT:
            shape = assembly.sizes(assembly.count(TIMESTEP), assembly.count(CONDITION), *pack.shape)
            joined = assembly.add("Reshape", [joined, shape], ["N", "R", *pack.shape], joined.dtype)
        assembly.output(pack.name, joined, [*AXES[pack.space], *pack.shape])
    return model


def _new(role: str, step: ir.Model) -> ir.Model:
    graph = ir.Graph([], [], nodes=[], opset_imports=dict(step.opset_imports), name=role)
    return ir.Model(
        graph, ir_version=step.ir_version, producer_name=step.producer_name, producer_version=step.producer_version
    )


def _joined(assembly: Assembly, pack: Pack) -> ir.Value:
    """Build a pack (first, width) from its pieces."""
    pieces = [assembly.get(piece, pack.space) for piece in pack.pieces]
    if pack.alone:
        return pieces[0]
    first = str(AXES[pack.space])
    sizes = zip(pieces, pack.sizes, strict=False)  # without the padding
    flat = [v if rank(v) == 2 else assembly.reshape(v, [size], first) for v, size in sizes]
    joined = assembly.concat(flat, 1, [first, sum(pack.sizes[: len(flat)])])
    if len(pack.sizes) == len(flat):
        return joined
    pads = assembly.numbers(0, 0, 0, pack.sizes[-1])
    return assembly.add("Pad", [joined, pads], [first, *pack.shape], joined.dtype, {"mode": "constant"})


def _unpack(assembly: Assembly, pack: Pack, tensor: ir.Value, first: int | str) -> list[ir.Value]:
    """Split a pack (first, width) into its pieces, in the shapes they had."""
    made = []
    for piece, part in zip(pack.pieces, assembly.split(tensor, pack.sizes, first), strict=False):  # without the padding
        rest = behind(piece) or ()
        value = part if len(rest) == 1 else assembly.reshape(part, rest, first)
        assembly.define(piece, pack.space, value)
        made.append(value)
    return made


def _cut_step(step: ir.Model, branched: BranchAxes, chosen: frozenset[ir.Node], packs: Sequence[Pack]) -> None:
    """Replace what was moved by inputs, and remove it from the step."""
    graph = step.graph
    nodes = list(graph)
    assembly = Assembly(graph, branched)
    inputs = {value.name: value for value in graph.inputs}
    for pack in packs:
        dtype = pack.pieces[0].dtype
        tensor = assembly.input(pack.name, dtype, [*STEP_AXES[pack.space], *pack.shape])
        first: int | str = 1
        if pack.space != TIMESTEP:
            first = BRANCH_BATCH[0]
            tensor = assembly.reshape(tensor, pack.shape, first)
        pieces = [tensor] if pack.alone else _unpack(assembly, pack, tensor, first)
        for original, piece in zip(pack.pieces, pieces, strict=True):
            readers = [(reader, i) for reader, i in original.uses() if reader not in chosen]
            if pack.space == TIMESTEP and not all(_broadcasts(reader, original, branched) for reader, _ in readers):
                piece = _repeated(assembly, piece, inputs)
            for reader, i in readers:
                reader.replace_input_with(i, piece)
    added = list(graph)[len(nodes) :]
    graph.remove(added)
    graph.insert_before(nodes[0], added)
    RemoveUnusedNodesPass()(step)
    for value in list(graph.inputs):
        if not value.uses():
            graph.inputs.remove(value)


def _broadcasts(node: ir.Node, value: ir.Value, branched: BranchAxes) -> bool:
    """Return whether an operator broadcasts one entry along the first axis of another of its inputs."""
    others = [v for v in values(node) if v is not value and branched.depends.get(v) != TIMESTEP]
    firsts = [v.shape[0] for v in others if v.shape is not None and rank(v) == rank(value)]
    return node.op_type in ELEMENTWISE and any(not isinstance(size, int) for size in firsts)


def _repeated(assembly: Assembly, piece: ir.Value, inputs: Mapping[str | None, ir.Value]) -> ir.Value:
    """Expand (1, ...) to (R, ...)."""
    rest = behind(piece) or ()
    int64 = ir.DataType.INT64
    guides = assembly.add("Shape", [inputs[names.GUIDANCE]], [1], int64)
    samples = assembly.add("Shape", [inputs[names.NOISE]], [1], int64, {"start": 0, "end": 1})
    count = assembly.add("Mul", [guides, samples], [1], int64)
    shape = assembly.sizes(count, *(1 for _ in rest))
    return assembly.add("Expand", [piece, shape], [BRANCH_BATCH[0], *rest], piece.dtype)
