"""Turing (sm75) has no float32 matrix products in TensorRT for RTX; the search of a codebook is one.

With a constant factor, a product over the last axis is a convolution of one pixel, which Turing has.  The bundle keeps
the product, since ONNX Runtime finds the nearest code five times faster from it on a CPU.
"""

from types import ModuleType
from typing import Any

import numpy as np

TURING = "sm75"
CHANNELS_FIRST, CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)


def products_to_convolutions(library: ModuleType, network: Any) -> list[Any]:
    """Rewrite float32 products (B, h, w, D) times a constant (D, K) in a network.

    Others stay, and the compiler may refuse them.

    Args:
        library: the network's.
        network: an INetworkDefinition, as parsed.

    Returns:
        The weights of the convolutions, which must live until the network is compiled.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    makers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    kept = []
    for product in layers:
        if product.type != library.LayerType.MATRIX_MULTIPLY:
            continue
        left, right, out = product.get_input(0), product.get_input(1), product.get_output(0)
        factor = _constant(library, makers, right.name)
        if out.dtype != library.DataType.FLOAT or len(left.shape) != 4 or factor is None or out.is_network_output:
            continue
        product.__class__ = library.IMatrixMultiplyLayer
        if {product.op0, product.op1} != {library.MatrixOperation.NONE}:
            continue
        kernel = np.ascontiguousarray(factor.T[:, :, None, None])  # (K, D, 1, 1)
        kept.append(kernel)
        before = network.add_shuffle(left)
        before.first_transpose = CHANNELS_FIRST
        weights = library.Weights(kernel)
        convolution = network.add_convolution_nd(
            before.get_output(0), len(kernel), (1, 1), weights, library.Weights()
        )
        after = network.add_shuffle(convolution.get_output(0))
        after.first_transpose = CHANNELS_LAST
        for layer in layers:
            for i in range(layer.num_inputs):
                tensor = layer.get_input(i)
                if tensor is not None and tensor.name == out.name:
                    layer.set_input(i, after.get_output(0))
    return kept


def _constant(library: ModuleType, makers: dict[str, Any], name: str) -> Any:
    """Return the matrix (D, K) that a tensor is, without leading axes of 1; None if it isn't constant."""
    maker = makers.get(name)
    while maker is not None and maker.type == library.LayerType.SHUFFLE:  # leading axes, which the parser puts there
        maker = makers.get(maker.get_input(0).name)
    if maker is None or maker.type != library.LayerType.CONSTANT or len(maker.get_output(0).shape) != 2:
        return None
    maker.__class__ = library.IConstantLayer
    return np.asarray(maker.weights).reshape(tuple(maker.get_output(0).shape))
