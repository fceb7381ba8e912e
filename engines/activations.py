"""TensorRT for RTX 1.7 compiles one ELU behind a loop or a branch and fails at the next; SELU it compiles there too.

An LSTM is such a loop.  ELU is SELU with a scale of 1: x above 0, alpha (exp(x) - 1) below.
"""

from types import ModuleType
from typing import Any


def elu_to_selu(library: ModuleType, network: Any) -> None:
    """Replace each ELU in a network by a SELU that computes the same.

    Args:
        library: the network's.
        network: an INetworkDefinition, as parsed.
    """
    for layer in map(network.get_layer, range(network.num_layers)):
        if layer.type != library.LayerType.ACTIVATION:
            continue
        layer.__class__ = library.IActivationLayer  # whose type is that of the activation
        if layer.type == library.ActivationType.ELU:
            alpha = layer.alpha
            layer.type, layer.alpha, layer.beta = library.ActivationType.SELU, alpha, 1.0
