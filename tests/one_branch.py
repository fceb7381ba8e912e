"""A bundle's denoiser asked one branch at a time, by ONNX Runtime alone: what guidance is checked against."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime

from mmgen.runtime import bundle as names
from mmgen.runtime.bundle import Bundle, K
from mmgen.runtime.request import branches
from mmgen.runtime.text import open_tokenizer

Array = np.ndarray
Denoiser = Callable[[Array, float], Array]  # scaled x (B, *L) and a timestep to the model's output


class OneBranch:
    """Its graphs, opened anew."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        texts = [c for c in bundle.conditions if c.kind == "text"]
        path = bundle.path(names.TOKENIZER)
        self.encoders = {c.name: open_tokenizer(path, c.length or 0, c.pad_id) for c in texts}
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.sessions = {
            role: onnxruntime.InferenceSession(bundle.path(graph.file), options, providers=["CPUExecutionProvider"])
            for role, graph in bundle.graphs.items()
        }

    def denoiser(self, **conditions: Any) -> Denoiser:
        """The model's output for one set of conditions, without guidance."""
        asked = branches(self.bundle, self.encoders, conditions, 1.0, None)
        made = self.call("condition", asked.inputs) if "condition" in self.sessions else asked.inputs
        conditioning = {name: array[None] for name, array in made.items()}
        keep_output = np.zeros((K, K + 3), np.float32)
        keep_output[0, K + 1] = 1

        def denoise(x: Array, timestep: float) -> Array:
            state = np.zeros((K, *x.shape), np.float32)
            state[0] = x
            feed = {
                names.STATE: state,
                names.TRANSITION: keep_output,
                names.PREDICTION: np.zeros(2, np.float32),
                names.X0_LIMIT: np.ones(1, np.float32),
                names.INPUT_SCALE: np.ones(1, np.float32),
                names.TIMESTEP: np.float32([timestep]),
                names.GUIDANCE: np.ones(1, np.float32),
                names.RESCALE: np.zeros(1, np.float32),
                names.NOISE: np.zeros_like(x),
                **conditioning,
            }
            next_state: Array = self.call("step", feed)[names.NEXT_STATE][0]
            return next_state

        return denoise

    def call(self, role: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of a graph by name."""
        outputs = [spec.name for spec in self.bundle.graphs[role].outputs]
        return dict(zip(outputs, self.sessions[role].run(outputs, dict(inputs)), strict=True))
