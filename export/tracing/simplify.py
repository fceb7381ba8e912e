"""Simplification of a traced graph: constants are folded, and operators without effect are removed.

The passes are onnxscript's.  Its own choice of them takes a number near 0 or 1 for 0 or 1, and so drops an epsilon that
guards a division; here a number is what it is.
"""

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PassManager, Sequential, common
from onnxscript import optimizer, rewriter
from onnxscript.rewriter import pattern
from onnxscript.rewriter.rules import common as rules

from mmgen.export.tracing.bits import replace_bitwise

ROUNDS = 2
SMALL = 1024  # elements; constants up to here are folded anyway


def simplify(model: ir.Model) -> None:
    """Simplify a graph in place; what it computes stays the same for every input."""
    common.InlinePass()(model)
    _make_single(model)
    shorten = PassManager(
        [rewriter.RewritePass(_rules()), common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass()]
    )
    for _ in range(ROUNDS):
        optimizer.fold_constants(model, onnx_shape_inference=True, should_fold=_pays)
        shorten(model)
    _choose(model)
    replace_bitwise(model.graph)
    Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


def _make_single(model: ir.Model) -> None:
    """Make float64 numbers float32 here, where comparisons with torch follow; TensorRT would do it by itself."""
    single, double = ir.DataType.FLOAT, ir.DataType.DOUBLE
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.dtype == double:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.dtype = single
    for node in model.graph:
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == double:
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(attribute.value.numpy().astype(np.float32)))
            elif name in ("dtype", "to") and attribute.type == ir.AttributeType.INT and attribute.value == double:
                node.attributes[name] = ir.AttrInt64(name, single)
        for value in node.outputs:
            if value.dtype == double:
                value.dtype = single


def _pays(node: ir.Node) -> bool | None:
    """Decide whether to fold what has large constants: weights made of weights, such as those that are normalised.

    Not if it makes them larger, or if others than such nodes read them, which would store them twice.  None: as small
    ones are folded.
    """
    tensors = [value for value in node.inputs if value is not None and value.const_value is not None]
    sizes = [value.const_value.size for value in tensors if value.const_value is not None]
    shapes = [value.shape for value in node.outputs]
    made = [math.prod(shape.numpy()) for shape in shapes if shape is not None and shape.is_static()]
    if len(tensors) != len(node.inputs) or not sizes or not made or max(sizes) <= SMALL:
        return None
    readers = (reader for value in tensors for reader in value.consumers())
    return max(made) <= max(sizes) and all(_constant(reader) for reader in readers)


def _constant(node: ir.Node) -> bool:
    return all(value is None or value.const_value is not None or _made_of_constants(value) for value in node.inputs)


def _made_of_constants(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and bool(producer.inputs) and _constant(producer)


def _choose(model: ir.Model) -> None:
    """Replace a Where whose condition is constant everywhere by the chosen operand."""
    for node in list(model.graph):
        condition = node.inputs[0].const_value if node.op_type == "Where" and node.inputs[0] is not None else None
        if condition is None:
            continue
        chosen = condition.numpy()
        value = node.inputs[1] if chosen.all() else node.inputs[2] if not chosen.any() else None
        made = node.outputs[0]
        if value is not None and value.shape is not None and value.shape == made.shape and not made.is_graph_output():
            ir.convenience.replace_all_uses_with(made, value)
    common.RemoveUnusedNodesPass()(model)


def _rules() -> list[pattern.RewriteRule]:
    """List the rules that onnxscript applies by default, in its order, except for the numbers.

    Left out is the rule that makes a Split of two Slices: it compares every Slice with every other.
    """
    return [
        *_without_effect(),
        rules.dropout_zero_rule,
        rules.dropout_inference_rule,
        rules.two_reshapes_matmul_reshape_rule,
        rules.one_reshape_matmul_reshape_rule,
        rules.cast_constant_of_shape_rule,
        rules.cast_constant_of_shape_without_value_rule,
        rules.collapse_slice_rule,
        rules.collapse_slice2_rule,
        rules.materialize_reshape_shape_rule,
        rules.min_min_rule,
        rules.max_max_rule,
        rules.min_max_rule,
        rules.max_min_rule,
        rules.successive_clip_relu_rule,
        rules.successive_relu_clip_rule,
        rules.successive_relu_rule,
        rules.successive_clip_rule,
        rules.cast_cast_rule,
        rules.no_op_cast_rule,
        rules.no_op_expand_rule,
        rules.flatten_to_reshape_rule,
        rules.reshape_reshape_rule,
        rules.no_op_transpose_rule,
        rules.transpose_transpose_rule,
        rules.unsqueeze_unsqueeze_rule,
        rules.squeeze_reshape_1d_rule,
        rules.no_op_dynamic_scatter_nd_rule,
        rules.no_op_static_scatter_nd_rule,
        rules.normalize_pad_format_conv_rule,
        rules.fuse_pad_into_conv_rule,
        rules.fuse_batchnorm_into_conv_rule,
        rules.fuse_batchnorm_into_conv_transpose_rule,
        rules.fuse_batchnorm_into_gemm_rule,
        rules.remove_optional_bias_from_conv_rule,
        rules.remove_optional_bias_from_conv_transpose_rule,
        rules.remove_optional_bias_from_gemm_rule,
    ]


def _without_effect() -> list[pattern.RewriteRule]:
    """Build rules that remove sums with 0 and products with 1, exactly."""
    zero, one = (pattern.Constant(number, rel_tol=0, abs_tol=0) for number in (0, 1))

    def same(op: Any, x: Any, **_: Any) -> Any:
        return op.Identity(x)

    commuting = (lambda op, x: op.Add(x, zero), lambda op, x: op.Mul(x, one))
    ordered = (lambda op, x: op.Sub(x, zero), lambda op, x: op.Div(x, one))
    found = [rule for left in commuting for rule in pattern.RewriteRule(left, same).commute()]
    return [*found, *(pattern.RewriteRule(left, same) for left in ordered)]
