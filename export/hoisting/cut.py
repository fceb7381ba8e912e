"""Which of the work that doesn't depend on the latents is worth doing before the loop: a minimum cut.

Left in the step, work costs the bytes of its weights, its arithmetic and the memory it moves, at every step.  Taken
out, what the rest still needs of it has to be read instead, at every step.  The cheapest way to draw the line is the
minimum cut of a network in which every tensor and every weight is paid for once.
"""

import math

import networkx as nx
import onnx_ir as ir

from mmgen.export.base.operators import values
from mmgen.export.hoisting.branch_axes import BranchAxes
from mmgen.export.tracing.counts import elements, entry_bytes, operations

BALANCE = 50  # operations in the time of a byte: 2 on small CPUs, 50 on a Jetson Orin, 300 on a large GPU, in half
NODE = 1024  # bytes in the time that an operator takes to start
PIECE = 512  # bytes in the time that taking a tensor out of a pack takes to start
VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})  # move nothing

_HOISTED, _STEP = "hoisted", "step"  # the ends of the network


def choose(graph: ir.Graph, branched: BranchAxes, usual: int) -> frozenset[ir.Node]:
    """Choose the nodes to take out of the step; with a node goes all that it is computed from.

    Args:
        graph: of the step.
        branched: what is known of its tensors.
        usual: R that the choice is made for.
    """
    network = nx.DiGraph()
    movable = [node for node in graph if any(map(branched.invariant, node.outputs))]
    among = set(movable)
    for node in movable:
        root = any(v in branched.roots for v in node.outputs)
        network.add_edge(_HOISTED, node, capacity=math.inf if root else _work(node, branched, usual))
        for value in values(node):
            if value.producer() in among:
                network.add_edge(node, value.producer())  # hoisted only with what it needs; without capacity: never cut
            elif value.is_initializer() and value.const_value is not None and value not in network:
                network.add_edge(_HOISTED, value, capacity=value.const_value.nbytes)
            if value in network:
                network.add_edge(value, node)  # a weight leaves the step with the last node that reads it
        for value in node.outputs:
            network.add_edge(node, value, capacity=_crossing(value, branched, usual))
            for reader in value.consumers():
                network.add_edge(value, reader if reader in among else _STEP)
    for value in [v for v in network if isinstance(v, ir.Value) and v.is_initializer()]:
        if any(reader not in among for reader in value.consumers()):
            network.add_edge(value, _STEP)  # the step needs it anyway
    if _STEP not in network:
        return frozenset()
    _, (hoisted, _) = nx.minimum_cut(network, _HOISTED, _STEP, flow_func=nx.algorithms.flow.dinitz)
    return frozenset(node for node in movable if node in hoisted)


def _work(node: ir.Node, branched: BranchAxes, usual: int) -> int:
    """Estimate what a node costs in a step, in bytes, its weights not counted."""
    moved = 0
    if node.op_type not in VIEWS:
        moved = sum(entry_bytes(v) for v in (*values(node), *node.outputs) if v in branched.depends)
    return NODE + usual * (moved + (operations([node]) + elements(node.outputs[0])) // BALANCE)


def _crossing(value: ir.Value, branched: BranchAxes, usual: int) -> int:
    """Estimate what reading a tensor from outside costs a step, in bytes, with taking it out of its pack.

    A tensor that depends on the timestep alone is the same for the whole branch batch.
    """
    if value in branched.roots:
        return usual * entry_bytes(value)
    return PIECE + 2 * entry_bytes(value) * (usual if "condition" in branched.depends[value] else 1)
