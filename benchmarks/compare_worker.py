"""One peer in a process of its own: loads once, then answers one request after another.

    python compare_worker.py MODEL PEER FOLDER THREADS

A line of JSON goes out when it is ready, and one for each line that comes in: ``{"request": 3, "save": "made.npz"}``
is answered by ``{"seconds": 0.3, "steps": [0.01, ...], "decode": 0.1, "cpu": 0.6, "peak": 123456}``.  An error ends
the process with ``{"error": "..."}``.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from compare_models import MODELS, PEERS, Made, Model, Peer, Request, request

Play = Callable[[Request], Made]


def open_peer(model: Model, peer: Peer, folder: Path, threads: int) -> Play:
    """Load a peer; what its environment lacks isn't imported."""
    match peer.environment:
        case "torch":
            from compare_torch import open_torch

            return open_torch(model, peer, folder, threads)
        case "mmgen":
            return open_mmgen(model, peer, folder, threads)
        case "optimum":
            return open_optimum(folder)
    from compare_loops import open_loop

    return open_loop(model, peer, folder, threads)


def open_mmgen(model: Model, peer: Peer, folder: Path, threads: int) -> Play:
    """A bundle on the backend that the peer's name says."""
    from mmgen.runtime import load

    backend = peer.name.removeprefix("mmgen-").removesuffix("-whole")
    generator = load(folder / f"{peer.bundle}.mmgen", backend, threads=threads)

    def play(request: Request) -> Made:
        generator.forget("condition", "timestep")  # the others keep nothing of the request before either
        noise: dict[str, Any] = {"seed": request.number} if model.kind == "tokens" else {"noise": request.noise}
        made = generator.generate(**request.conditions, steps=model.steps, guidance=model.guidance, **noise)
        return Made(made.media, made.latents, made.timings.steps, made.timings.decode)

    return play


def open_optimum(folder: Path) -> Play:
    """The pipeline that optimum has for ONNX Runtime; raises where it has none for the model."""
    from optimum.onnxruntime.modeling_diffusion import SUPPORTED_ORT_PIPELINES

    wanted = json.loads((folder / "diffusers" / "model_index.json").read_text())["_class_name"]
    known = {pipeline.auto_model_class.__name__ for pipeline in SUPPORTED_ORT_PIPELINES}
    if wanted not in known:
        raise NotImplementedError(f"optimum-onnx has no pipeline for {wanted}; it has {', '.join(sorted(known))}")
    raise NotImplementedError(f"optimum-onnx has a pipeline for {wanted} now, which compare_worker.py should play")


def answer(play: Play, asked: dict[str, Any], model: Model) -> dict[str, Any]:
    """Play one request."""
    wanted = request(model, asked["request"])
    cpu, begun = time.process_time(), time.perf_counter()
    made = play(wanted)
    seconds = time.perf_counter() - begun
    spent = time.process_time() - cpu
    if "save" in asked:
        np.savez(asked["save"], media=made.media, latents=made.latents)
    return {"seconds": seconds, "steps": made.steps, "decode": made.decode, "cpu": spent, "peak": peak_memory()}


def peak_memory() -> int:
    """Most bytes that this process held at a time, as Linux counts."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return 1024 * int(found[1]) if found else 0


def main() -> None:
    """Read requests, write answers; whatever libraries print goes to stderr."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    name, peer, folder, threads = sys.argv[1:]
    model = MODELS[name]
    try:
        play = open_peer(model, PEERS[peer], Path(folder), int(threads))
        print(json.dumps({"ready": True}), file=out)
        for line in sys.stdin:
            print(json.dumps(answer(play, json.loads(line), model)), file=out)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}), file=out)
        raise


if __name__ == "__main__":
    main()
