"""Group norms that keep pictures in the memory layout of OpenVINO's convolutions, channels last.

A group norm is exported as a norm of rows: every group of channels becomes one.  In memory a row is contiguous only
when channels come first, so OpenVINO reorders each picture before the norm and again after it, which takes longer than
the norm.  Mean and variance of single channels need no order, and those of a group follow from them,

    mean = mean_c m_c,    variance = mean_c (v_c + (m_c - mean)^2),

so that the norm becomes a factor and a summand for each channel.
"""

from typing import Any

import numpy as np


def channels_last(openvino: Any, model: Any) -> int:
    """Rewrite the group norms of an OpenVINO model's pictures (B, C, H, W), and return their number."""
    found = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MVN" and (ends := _ends(node)) is not None:
            picture, last = ends
            groups = node.input_value(0).get_partial_shape()[1].get_length()
            made = _norm(openvino.opset13, picture, groups, node.get_attributes()["eps"])
            last.output(0).replace(made.output(0))
            found += 1
    return found


def _ends(norm: Any) -> tuple[Any, Any] | None:
    """Find the picture whose rows a norm takes, and the node that turns them into a picture again."""
    before, after = norm.input_value(0).get_node(), _reader(norm)
    for kind, neutral in (("Multiply", 1), ("Add", 0)):  # ONNX's norm has a factor and a summand for each row
        if after is not None and after.get_type_name() == kind and _constant(after.input_value(1), neutral):
            after = _reader(after)
    if after is None or {before.get_type_name(), after.get_type_name()} != {"Reshape"}:
        return None
    picture = before.input_value(0)
    shape, rows = picture.get_partial_shape(), before.output(0).get_partial_shape()
    if (shape.rank.get_length(), rows.rank.get_length()) != (4, 3) or after.output(0).get_partial_shape() != shape:
        return None
    sizes = [size.get_length() if size.is_static else 0 for size in (*list(shape)[1:], *list(rows)[1:])]
    channels, height, width, groups, length = sizes  # rows are groups if a sample has no others and channels stay whole
    whole = 0 < channels * height * width == groups * length and channels % groups == 0
    return (picture, after) if whole and _of_rows(norm) else None


def _of_rows(norm: Any) -> bool:
    """Check whether a norm is one of rows, to mean 0 and variance 1."""
    attributes = norm.get_attributes()
    kind = attributes["normalize_variance"] and str(attributes["eps_mode"]).upper() == "INSIDE_SQRT"
    return kind and (_constant(norm.input_value(1), 2) or _constant(norm.input_value(1), -1))


def _reader(node: Any) -> Any:
    """Return the only node that reads a node's output, or None."""
    readers = [reader.get_node() for reader in node.output(0).get_target_inputs()]
    readers = [reader for reader in readers if reader.get_type_name() != "ShapeOf"]
    return readers[0] if len(readers) == 1 else None


def _constant(value: Any, wanted: float) -> bool:
    node = value.get_node()
    while node.get_type_name() in ("Reshape", "Convert"):
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Constant" and bool(np.all(node.data == wanted))


def _norm(opset: Any, x: Any, groups: int, epsilon: float) -> Any:
    channels = x.get_partial_shape()[1].get_length()
    pixels, members = np.array([2, 3]), np.array([2])
    split, joined = np.array([0, groups, channels // groups, 1]), np.array([0, channels, 1, 1])
    each = np.ones((channels // groups, 1), np.float32)
    kind, x = x.get_element_type(), opset.convert(x, np.float32)
    means = opset.reduce_mean(x, pixels, True)  # (B, C, 1, 1)
    variances = opset.reduce_mean(opset.squared_difference(x, means), pixels, True)
    means, variances = (opset.reshape(of_channels, split, True) for of_channels in (means, variances))
    mean = opset.reduce_mean(means, members, True)  # (B, G, 1, 1)
    variance = opset.reduce_mean(opset.add(variances, opset.squared_difference(means, mean)), members, True)
    factor = opset.power(opset.add(variance, np.float32(epsilon)), np.float32(-0.5))
    mean, factor = (opset.reshape(opset.multiply(of_group, each), joined, True) for of_group in (mean, factor))
    return opset.convert(opset.multiply(opset.subtract(x, mean), factor), kind)
