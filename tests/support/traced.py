"""A part of a model in torch, and its graph in ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from mmgen.export.graphs.latent import Source


def call(source: Source, inputs: dict[str, Tensor]) -> list[np.ndarray]:
    with torch.no_grad():
        made = source.module(*inputs.values())
    return [out.numpy() for out in ((made,) if isinstance(made, Tensor) else made)]


def play(path: Path, inputs: dict[str, Tensor]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {name: x.numpy() for name, x in inputs.items()})
