"""Which operators of a graph stay float32 in half precision, and why: its islands, the float32 exceptions.

Everything is decided by dataflow, so it holds for any network, and for graphs that tools have rewritten.  "Depends"
means by value: what only looks at a tensor's shape doesn't depend on it.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import starmap

import onnx_ir as ir

from mmgen.export.base.dtypes import half_slots, is_single
from mmgen.export.base.operators import (
    BLENDS,
    CONVOLUTIONS,
    COPIES,
    DIVISIONS,
    PRODUCTS,
    SATURATING,
    SOFTMAX,
    STATISTICS,
    SUMS,
    is_layer,
    is_weight,
    values,
)
from mmgen.export.base.origins import module_of
from mmgen.export.hoisting.unprocessed import unprocessed
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.storage import tensors
from mmgen.runtime.storage.schema import INPUT, Island, Role

LARGEST = 65504.0  # of float16
# A tensor whose measured range passes this stays float32.  Three bits are kept for what was not measured: other
# prompts and seeds, and the partial sums inside a product, which a GPU may accumulate in half precision.
LIMIT = LARGEST / 8
MASKED = -LARGEST / 2  # what a mask's huge negative number becomes; with a second mask or any cold score it still fits
ROUNDING = 1e-2  # a weight that float16's narrow exponent changes by more than this (relative RMS) stays float32
EPSILON = 1e-3  # a constant up to here that is added to a divisor, or is the least that it may be, guards it
GUARDS = frozenset({"Add", "Clip", "Max", "Sub", "Where"})
AROUND_GUARDS = GUARDS | SUMS | {"Abs", "Cast", "Div", "Expand", "Identity", "Mul", "Neg", "Pow", "Reciprocal",
                                 "Reshape", "Sqrt", "Squeeze", "Unsqueeze"}  # fmt: skip  # between guard and division
SMALL_POWERS = SUMS | {"Abs", "Mul", "Neg", "Pow", "Sqrt"}
SATURATED = 20.0  # from here on the functions in SATURATING are constant

SOLVER = frozenset((
    tensors.TRANSITION, tensors.PREDICTION, tensors.X0_LIMIT, tensors.GUIDANCE, tensors.NOISE, tensors.KNOWN,
    tensors.KEEP, tensors.NEXT_LEVEL,
    tensors.SHARPNESS, tensors.TOP_K, tensors.CONFIDENCE, tensors.MASKED, tensors.STAY, tensors.WINDOW,
    tensors.REDRAW, tensors.THRESHOLD, tensors.CHOICE, tensors.ORDER,
))  # fmt: skip


@dataclass(frozen=True)
class Weight:
    """What float16 does to an initialiser."""

    low: float  # minimum
    high: float  # maximum
    magnitude: float  # max |value| of the finite values; infinities fit
    rounding: float  # |value - float16(value)| / |value| in the 2-norm, over values that fit
    lost: float  # share of the non-zero values that become zero
    open: bool = True  # whether each row, along the last axis, has a value that isn't hugely negative


@dataclass(frozen=True)
class Choice:
    """The nodes that compute in float32, what to report of them, and the initialisers that are masks."""

    single: frozenset[ir.Node]
    islands: tuple[Island, ...]
    masks: frozenset[ir.Value]


def choose(
    model: ir.Model,
    weights: Mapping[ir.Value, Weight],
    ranges: Mapping[str, float] | None,
    role: Role,
    given: Container[str] = (),
) -> Choice:
    """Choose the nodes of a float32 graph that stay float32.

    Args:
        model: the graph; every tensor with its type.
        weights: of every float32 initialiser.
        ranges: max |value| of every other float32 tensor; None: activations become half whatever their range.
        role: says what the graph's inputs and outputs are.
        given: inputs that a request gives and no layer has processed.
    """
    flow = _Flow(model, role)
    softmax = _ends_in_softmax(flow)
    _structure(flow)
    exact = [v for v in unprocessed(model.graph, given) if not softmax.get(v, False)]
    flow.island(flow.arithmetic_on(exact), "arithmetic on an input before its first layer")
    _statistics(flow)
    _guards(flow)
    masks, masked = _masks(flow, weights, softmax)
    _weights(flow, weights, masks)
    if ranges is not None:
        _ranges(flow, ranges, masked)
    _copies(flow)
    return Choice(frozenset(flow.single), tuple(flow.islands), frozenset(masks))


class _Flow:
    """A graph with what flows where, and the choice as it grows."""

    def __init__(self, model: ir.Model, role: Role) -> None:
        self.role = role
        self.inputs = list(model.graph.inputs)
        self.nodes = list(model.graph)
        self.single: dict[ir.Node, str] = {}  # the nodes that stay float32, with the reason
        self.islands: list[Island] = []
        opset = model.opset_imports.get("", 0)
        slots = {node: half_slots(node, opset) for node in self.nodes}
        # by node, the float32 inputs and outputs that can be float16 instead
        self.reads = {node: [v for i in slots[node][0] if (v := node.inputs[i]) is not None] for node in self.nodes}
        self.makes = {node: [node.outputs[i] for i in slots[node][1]] for node in self.nodes}
        self.depends: dict[ir.Value, frozenset[str]] = {v: frozenset((v.name or "",)) for v in self.inputs}
        self.raw: dict[ir.Value, bool] = {}  # no layer between the graph's inputs and here
        for node in self.nodes:
            sources = [] if node.op_type in ("ConstantOfShape", "Shape", "Size") else values(node)
            depends = frozenset[str]().union(*(self.depends.get(v, frozenset()) for v in sources))
            raw = not is_layer(node) and all(self.raw.get(v, True) for v in sources if is_single(v))
            for value in node.outputs:
                self.depends[value], self.raw[value] = depends, raw or not is_single(value)

    def keep(self, nodes: Iterable[ir.Node], reason: str) -> list[ir.Node]:
        """Keep nodes float32; return those that were not yet kept and compute floating-point numbers."""
        new = [node for node in nodes if node not in self.single]
        self.single.update(dict.fromkeys(new, reason))
        return [node for node in new if any(map(is_single, node.outputs))]

    def island(self, nodes: Iterable[ir.Node], reason: str) -> None:
        """Keep nodes float32 and report the last of them as an island."""
        if new := self.keep(nodes, reason):
            self.report(new[-1].outputs[0], reason)

    def report(self, value: ir.Value, reason: str) -> None:
        self.islands.append(Island(self.role, readable(value), reason))

    def before_layers(self, inputs: Iterable[str]) -> list[ir.Node]:
        """Find arithmetic on some of the graph's inputs, up to the first layer."""
        wanted = set(inputs)
        return [
            node
            for node in self.nodes
            if node.op_type not in COPIES and any(self.raw[v] and self.depends[v] & wanted for v in node.outputs)
        ]

    def arithmetic_on(self, made: Iterable[ir.Value]) -> list[ir.Node]:
        """Find the nodes that make these tensors, but for copies."""
        producers = {value.producer() for value in made if is_single(value)}
        return [node for node in self.nodes if node in producers and node.op_type not in COPIES]

    def above(self, start: Iterable[ir.Node], layers: int) -> list[ir.Node]:
        """Find nodes with what they are computed from, through so many layers with weights at most, up to the next."""
        found: dict[ir.Node, int] = {}  # layers still to be passed
        pending = [(node, layers) for node in start]
        while pending:
            node, left = pending.pop()
            if found.get(node, -1) >= left:
                continue
            found[node] = left
            for value in values(node):
                producer = value.producer()
                if producer is None or not is_single(value):
                    continue
                if not is_layer(producer):
                    pending.append((producer, left))
                elif producer.op_type in PRODUCTS | CONVOLUTIONS and left:
                    pending.append((producer, left - 1))
        return [node for node in self.nodes if node in found]


def readable(value: ir.Value) -> str:
    """Name a tensor with the submodule it is made in, or a weight with the submodule that uses it."""
    node = value.producer() or next(iter(value.consumers()), None)
    scope = module_of(node) if node else ""
    name = value.name or ""
    return name if not scope or name.startswith(scope) else f"{scope}/{name}"


def _structure(flow: _Flow) -> None:
    """Keep float32 what must be so by its role, whatever was measured."""
    if flow.role == "step":
        solver = [node for node in flow.nodes if any(flow.depends[v] & SOLVER for v in node.outputs)]
        flow.island(solver, "solver arithmetic around the denoiser")
        flow.island(flow.before_layers([tensors.INPUT_SCALE]), "scaling of the denoiser's input")
    if flow.role in ("step", "timestep"):
        flow.island(flow.before_layers([tensors.TIMESTEP]), "arithmetic on the timestep before its first layer")
    if flow.role in ("decode", "encode") or flow.role.startswith(INPUT):
        searches = (node for node in flow.nodes if node.op_type in ("ArgMax", "ArgMin"))
        flow.island(flow.above(searches, layers=1), "nearest-code search")
    if flow.role == "decode":
        casts = [node for node in flow.nodes if node.op_type == "Cast" and is_single(node.inputs[0])]
        to_whole = (node for node in casts if not is_single(node.outputs[0]))
        flow.island(flow.above(to_whole, layers=0), "rounding to whole numbers")
    waves = (node for node in flow.nodes if node.op_type in ("Cos", "Sin") and flow.raw[node.outputs[0]])
    flow.island(flow.above(waves, layers=0), "angles of a sine or cosine")
    constant = [node for node in flow.nodes if any(is_single(v) and not flow.depends[v] for v in node.outputs)]
    flow.island((node for node in constant if node.op_type not in COPIES), "computed from constants")
    for node in flow.nodes:
        if any(map(is_single, node.outputs)) and not flow.makes[node]:
            flow.island([node], f"{node.op_type} has no float16 form")


def _statistics(flow: _Flow) -> None:
    """Keep float32 sums, the squares that only they read, and what turns a sum into one over a deviation."""
    reason = "sums are accumulated in float32"
    sums = {node for node in flow.nodes if node.op_type in SUMS}
    for node in flow.nodes:
        if node in sums:
            flow.island([node], reason)
    around = set(sums)
    for node in flow.nodes:
        read = [v.producer() for v in flow.reads[node] if v.const_value is None]
        of_sums = node.op_type in STATISTICS and bool(read) and all(producer in around for producer in read)
        readers = [n for v in node.outputs for n in v.consumers()] if node.op_type in ("Mul", "Pow") else []
        if of_sums or (readers and all(reader in sums for reader in readers)):
            around.add(node)
    flow.keep(around, reason)


def _guards(flow: _Flow) -> None:
    """Keep float32 what guards a division, root or logarithm against zero, with that operator and all between them.

    An epsilon of 1e-8 is 0 in half precision, and 1e-5 has one digit.
    """
    reason = "keeps a division away from zero"
    for node in flow.nodes:
        if (slot := DIVISIONS.get(node.op_type)) is None or (divisor := node.inputs[slot]) is None:
            continue
        pending, seen = [(divisor, [node])], set[ir.Value]()
        while pending:
            value, path = pending.pop()
            producer = value.producer()
            if producer is None or value in seen or not is_single(value) or producer.op_type not in AROUND_GUARDS:
                continue
            seen.add(value)
            around = [*path, producer]
            if producer.op_type in GUARDS and any(map(_is_epsilon, producer.inputs)):
                flow.island(around, reason)
                flow.keep(_powers(producer), reason)
            pending += [(v, around) for v in values(producer) if v.const_value is None]


def _is_epsilon(value: ir.Value | None) -> bool:
    tensor = None if value is None or not is_single(value) else value.const_value
    return tensor is not None and tensor.size == 1 and 0 < abs(float(tensor.numpy().reshape(-1)[0])) <= EPSILON


def _powers(guard: ir.Node) -> Iterator[ir.Node]:
    """Yield what a guarded number is computed from, as far as it may be far smaller than its origin."""
    pending = [guard]
    while pending:
        for value in values(pending.pop()):
            producer = value.producer()
            if producer is not None and producer.op_type in SMALL_POWERS:
                yield producer
                pending.append(producer)


def _ends_in_softmax(flow: _Flow) -> dict[ir.Value, bool]:
    """Return, of each tensor, whether all that it gets into is a softmax."""
    ends: dict[ir.Value, bool] = {}

    def into_softmax(node: ir.Node) -> bool:
        return node.op_type in SOFTMAX or (node.op_type in BLENDS and all(ends.get(v, False) for v in node.outputs))

    def ends_there(value: ir.Value) -> bool:
        return bool(value.uses()) and not value.is_graph_output() and all(map(into_softmax, value.consumers()))

    for node in reversed(flow.nodes):
        ends.update((value, ends_there(value)) for value in node.outputs)
    constants = (v for node in flow.nodes for v in values(node) if v.const_value is not None)
    ends.update((value, ends_there(value)) for value in constants)
    return ends


def _masks(
    flow: _Flow, weights: Mapping[ir.Value, Weight], softmax: Mapping[ir.Value, bool]
) -> tuple[set[ir.Value], set[ir.Value]]:
    """Find constants that mask entries of a softmax, and all tensors that these are written into or added to.

    Their magnitude need not be preserved, so the range of those tensors says nothing.  But the softmax of a row that is
    masked completely, as by padding, is then no longer uniform: before the loop, where time matters little, only a
    constant that leaves something unmasked in every row counts as such a mask.
    """
    negative = {v: w for v, w in weights.items() if w.low < -LIMIT and w.high <= LIMIT and softmax.get(v, False)}
    masks = {v for v, w in negative.items() if flow.role == "step" or w.open}
    masked = set(masks)
    for node in flow.nodes:
        if node.op_type in BLENDS and any(v in masked for v in values(node)):
            masked.update(node.outputs)
    return masks, masked


def _weights(flow: _Flow, weights: Mapping[ir.Value, Weight], masks: set[ir.Value]) -> None:
    """Keep float32 what reads a weight that float16 can't represent."""
    for value, weight in weights.items():
        if weight.magnitude > LARGEST:
            reason = f"weight up to {weight.magnitude:.3g}, above {LARGEST:.0f}"
        else:
            reason = f"float16 changes the weight by {weight.rounding:.0%}, {weight.lost:.0%} of it becomes 0"
        fits = value in masks or (weight.magnitude <= LARGEST and weight.rounding <= ROUNDING)
        if not fits and flow.keep((node for node in value.consumers() if value in flow.reads[node]), reason):
            flow.report(value, reason)


def _ranges(flow: _Flow, ranges: Mapping[str, float], masked: set[ir.Value]) -> None:
    """Keep float32 what makes or reads a tensor that comes near the largest half.

    The output of a norm that reads one is small again, so the products behind it are half.
    """

    def hot(value: ir.Value) -> bool:
        if not is_single(value) or value.const_value is not None or value in masked:
            return False
        return _range(flow, ranges, value) > LIMIT

    gains = _gains(flow, hot)
    structural = set(flow.single)
    for node in flow.nodes:
        near = (v for v in (*flow.reads[node], *flow.makes[node]) if hot(v))
        if any(gains.get(v, 0) * LARGEST < SATURATED for v in near):
            flow.keep([node], "range")
    made = (value for node in flow.nodes if node.op_type not in COPIES for value in flow.makes[node])
    for value in (*flow.inputs, *made):
        around = {*value.consumers(), value.producer()} - structural
        if hot(value) and any(node in flow.single for node in around):
            flow.report(value, f"range {_range(flow, ranges, value):.3g} near {LARGEST:.0f}")


def _range(flow: _Flow, ranges: Mapping[str, float], value: ir.Value) -> float:
    if value.name not in ranges:
        what = f"graph {flow.role}: the range of tensor {value.name} wasn't measured"
        raise MmgenError(what, remedy="measure the ranges of the same file")
    return ranges[value.name or ""]


def _gains(flow: _Flow, hot: Callable[[ir.Value], bool]) -> dict[ir.Value, float]:
    """Return, for tensors that only get into a saturating function, by how much they are multiplied on the way.

    Where that is enough, infinity gives the same as any large number: so it is with the cube in GELU's tanh form.
    """
    gains: dict[ir.Value, float] = {}

    def gain(node: ir.Node, index: int) -> float:
        if node.op_type in SATURATING:
            return 1.0
        after = min((gains.get(v, 0.0) for v in node.outputs), default=0.0)
        others = [v for i, v in enumerate(node.inputs) if v is not None and i != index]
        if node.op_type == "Mul" and others[0].const_value is not None and others[0].const_value.size == 1:
            return after * abs(float(others[0].const_value.numpy().reshape(-1)[0]))
        if node.op_type in ("Add", "Sub") and not any(map(hot, others)):
            return after
        return 0.0

    for node in reversed(flow.nodes):
        for value in node.outputs:
            gains[value] = 0.0 if value.is_graph_output() else min(starmap(gain, value.uses()), default=0.0)
    return gains


def _copies(flow: _Flow) -> None:
    """Give copies the type that needs the fewest casts, and half where that makes no difference.

    Float32 copies are those between float32 and float32, those that join float32 tensors into one, and those out of a
    weight that is stored in float32 anyway.
    """
    stored = {v for node in flow.single for v in flow.reads[node] if is_weight(v)}
    copies = [node for node in flow.nodes if node.op_type in COPIES and flow.makes[node]]
    flow.keep((node for node in copies if stored.intersection(flow.reads[node])), "shared weight")

    def single_above(value: ir.Value) -> bool:
        if value.const_value is not None:
            return not is_weight(value)
        return value in flow.inputs or value.producer() in from_single

    from_single: set[ir.Node] = set(flow.single)
    for node in copies:
        if all(map(single_above, flow.reads[node])):
            from_single.add(node)
    into_single: set[ir.Node] = set(flow.single)
    for node in reversed(copies):
        below = [n for v in flow.makes[node] for n in v.consumers()]
        if all(n in into_single or not flow.makes[n] for n in below):
            into_single.add(node)
    flow.keep((node for node in copies if node in from_single & into_single), "between float32")
    for node in copies:
        joined = [v for v in flow.reads[node] if v.const_value is None]
        if len(joined) > 1 and all(v in flow.inputs or v.producer() in flow.single for v in joined):
            flow.keep([node], "joins float32")
