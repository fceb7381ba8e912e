"""What compare.py compares: models, and those who play them.  Numpy alone: every process reads it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

Precision = Literal["f32", "bf16"]
PROMPTS = ("red apple", "rocket", "sunflower", "tiger face", "grinning face", "pizza", "snowman", "red heart")


@dataclass(frozen=True)
class Model:
    """A model of published size, and what is asked of it."""

    name: str
    title: str
    kind: Literal["text", "class", "action", "tokens"]
    latents: tuple[int, ...]
    steps: int
    guidance: float
    rounds: int  # of one request to every peer
    layers: tuple[int, int, int] = (0, 0, 0)  # of a DiT: layers, heads, numbers a head
    together: bool = True  # all peers fit into memory at once; else the precisions go one after the other


MODELS = {
    model.name: model
    for model in (
        Model("emoji", "embedded default, 64²", "text", (8, 16, 16), 20, 4.0, 20),
        Model("dit-s", "DiT-S/2 + vq-f8, 256²", "class", (4, 32, 32), 20, 4.0, 10, (12, 6, 64)),
        Model("dit-b", "DiT-B/2 + vq-f8, 256²", "class", (4, 32, 32), 20, 4.0, 6, (12, 12, 64)),
        Model("action", "action head, GR00T N1.5's shape", "action", (16, 32), 4, 1.0, 10, together=False),
        Model("amused", "aMUSEd-256's shape", "tokens", (16, 16), 12, 10.0, 4, together=False),
    )
}
OPTIONAL = ("amused",)


@dataclass(frozen=True)
class Peer:
    """A program that plays a model, in a process and an environment of its own."""

    name: str
    environment: str
    precision: Precision
    kinds: tuple[str, ...] = ("text", "class", "action", "tokens")  # of the models that it is asked to play
    bundle: Literal["", "fp32", "fp16", "whole"] = ""  # that mmgen plays

    @property
    def ours(self) -> bool:
        """Whether it is mmgen as its users have it."""
        return self.bundle in ("fp32", "fp16")


REFERENCE = "torch"  # whose output the others' are compared with
LOOPS = ("text", "class", "action")
PEERS = {
    peer.name: peer
    for peer in (
        Peer("torch", "torch", "f32"),
        Peer("torch-bf16", "torch", "bf16"),
        Peer("torch-compile-bf16", "torch", "bf16"),  # of the two precisions the faster; compiling takes minutes
        Peer("onnxruntime-loop", "onnxruntime", "f32", LOOPS),
        Peer("openvino-loop", "openvino", "f32", LOOPS),
        Peer("openvino-loop-bf16", "openvino", "bf16", LOOPS),
        Peer("optimum", "optimum", "f32", ("class", "tokens")),
        Peer("mmgen-ort-cpu", "mmgen", "f32", bundle="fp32"),
        Peer("mmgen-openvino", "mmgen", "f32", bundle="fp32"),
        Peer("mmgen-openvino-bf16", "mmgen", "bf16", bundle="fp16"),
        Peer("mmgen-openvino-whole", "mmgen", "f32", ("action",), "whole"),
    )
}


@dataclass(frozen=True)
class Row:
    """One evaluation of a denoiser: x becomes a x + b out."""

    told: float  # the timestep, as the denoiser is told
    a: float
    b: float


def rows(model: Model) -> list[Row]:
    """The sampler of a model, as one would write it down for this model alone.

    class: DDIM (Song et al. 2021, eq. 12, eta 0) at every 50th of DiT's 1000 timesteps.  text: Euler along a flow from
    noise at 1 to data at 0, the network being told 1000 t.  action: from noise at 0 to data at 1, 1000 t truncated.
    """
    n = model.steps
    match model.kind:
        case "class":
            shares = np.append(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)), 1.0)  # the last: no noise
            times = [*range(0, 1000, 1000 // n)][::-1]
            return [Row(t, *_ddim(shares[t], shares[after])) for t, after in pairwise([*times, -1])]
        case "text":
            return [Row(1000 * (1 - i / n), 1.0, -1 / n) for i in range(n)]
        case "action":
            return [Row(float(1000 * i // n), 1.0, 1 / n) for i in range(n)]
    raise ValueError(f"no loop for {model.kind}")


def _ddim(share: float, after: float) -> tuple[float, float]:
    a = (after / share) ** 0.5
    return a, (1 - after) ** 0.5 - a * (1 - share) ** 0.5


@dataclass(frozen=True)
class Request:
    """What every peer is asked in one turn: one sample."""

    number: int
    noise: np.ndarray  # float32 (1, *latents); tokens are drawn with the numbers that mmgen has for this seed
    conditions: dict[str, Any]  # prompt, class_id, or context (400, 2048) and joints (64,)


def request(model: Model, number: int) -> Request:
    """The same for every peer, and another one each time."""
    draw = np.random.default_rng(number)
    noise = draw.standard_normal((1, *model.latents), np.float32)
    match model.kind:
        case "text" | "tokens":
            conditions: dict[str, Any] = {"prompt": PROMPTS[number % len(PROMPTS)]}
        case "class":
            conditions = {"class_id": 37 * (number + 1) % 1000}
        case "action":
            shapes = {"context": (400, 2048), "joints": (64,)}
            conditions = {name: draw.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return Request(number, noise, conditions)


@dataclass(frozen=True)
class Made:
    """What a peer made of a request."""

    media: np.ndarray  # pictures uint8 (1, H, W, 3); of an action head, its latents
    latents: np.ndarray  # float32 (1, *latents), as the loop leaves them
    steps: list[float]  # seconds of every step, the sampler's arithmetic included
    decode: float  # seconds


def peers_of(model: Model) -> Iterator[Peer]:
    """Those who are asked to play a model."""
    return (peer for peer in PEERS.values() if model.kind in peer.kinds)


def sessions(model: Model, peers: Sequence[Peer]) -> Iterator[list[Peer]]:
    """Those who are loaded together; the reference is in all, so that every peer meets it."""
    if model.together:
        yield list(peers)
        return
    for precision in ("f32", "bf16"):
        if any(peer.precision == precision for peer in peers):
            yield [peer for peer in peers if peer.precision == precision or peer.name == REFERENCE]
