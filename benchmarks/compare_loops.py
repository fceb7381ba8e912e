"""Loops written by hand with numpy, around ONNX that torch exported: ONNX Runtime and OpenVINO without mmgen."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from compare_models import Made, Model, Peer, Request, rows

Graph = Callable[[dict[str, np.ndarray]], np.ndarray]
TEXT_LENGTH = 24


def open_loop(model: Model, peer: Peer, folder: Path, threads: int) -> Callable[[Request], Made]:
    """A loop, its graphs loaded."""
    open_graph = _onnxruntime(threads) if peer.environment == "onnxruntime" else _openvino(peer, threads)
    graphs = {path.stem: open_graph(path) for path in sorted(folder.glob("*.onnx"))}
    conditions, steps = _conditions(model, folder, graphs), rows(model)
    whole = np.int64 if model.kind == "class" else np.float32  # a diffusers DiT's timesteps are integers

    def play(request: Request) -> Made:
        given, x, seconds = conditions(request), request.noise, []
        for row in steps:
            begun = time.perf_counter()
            if model.guidance == 1:
                out = graphs["denoiser"]({"x": x, "t": np.full(1, row.told, whole), **given})
            else:
                both = {"x": np.concatenate([x, x]), "t": np.full(2, row.told, whole), **given}
                asked, empty = np.split(graphs["denoiser"](both)[:, : x.shape[1]], 2)
                out = empty + np.float32(model.guidance) * (asked - empty)
            x = np.float32(row.a) * x + np.float32(row.b) * out
            seconds.append(time.perf_counter() - begun)
        if "decoder" not in graphs:
            return Made(x, x, seconds, 0.0)
        begun = time.perf_counter()
        pixels = np.clip(graphs["decoder"]({"latents": x}), -1, 1).transpose(0, 2, 3, 1)
        media = np.round(pixels * 127.5 + 127.5).astype(np.uint8)
        return Made(media, x, seconds, time.perf_counter() - begun)

    return play


def _conditions(model: Model, folder: Path, graphs: dict[str, Graph]) -> Callable[[Request], dict[str, np.ndarray]]:
    """What the denoiser is given beside x and t, made once a request: what is asked, then what guidance leaves."""
    match model.kind:
        case "class":
            return lambda request: {"class_id": np.array([request.conditions["class_id"], 1000])}
        case "action":
            return lambda request: {name: array[None] for name, array in request.conditions.items()}
        case "text":
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.enable_truncation(TEXT_LENGTH)
            tokenizer.enable_padding(length=TEXT_LENGTH)

            def context(request: Request) -> dict[str, np.ndarray]:
                encoded = tokenizer.encode_batch([request.conditions["prompt"], ""])
                return {"context": graphs["text"]({"tokens": np.array([one.ids for one in encoded])})}

            return context
    raise ValueError(f"no loop for {model.kind}")


def _onnxruntime(threads: int) -> Callable[[Path], Graph]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3

    def open_graph(path: Path) -> Graph:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda given: session.run(None, given)[0]

    return open_graph


def _openvino(peer: Peer, threads: int) -> Callable[[Path], Graph]:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # would report to its makers
    import openvino

    core = openvino.Core()
    precision = {"f32": "f32", "bf16": "bf16"}[peer.precision]
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    options["INFERENCE_NUM_THREADS"] = threads

    def open_graph(path: Path) -> Graph:
        infer_request = core.compile_model(path, "CPU", options).create_infer_request()
        return lambda given: infer_request.infer(given, share_inputs=True)[0]

    return open_graph
