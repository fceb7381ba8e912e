"""Exports of models that people bring: what half precision would spoil, and what has no tensors to be half."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tolerances import LIMITS
from torch import Tensor, nn
from traced_once import traced_once

from mmgen.export.base.model import Model
from mmgen.export.exporter import export
from mmgen.export.half.emulate import EmulatedHalf
from mmgen.export.proof.examples import scale_of
from mmgen.runtime import load
from mmgen.runtime.generator import Generator
from mmgen.runtime.request.noise import noise
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.process import Flow, Masked
from mmgen.runtime.storage.schema import Bundle, Condition, Defaults, Media
from mmgen.runtime.verify import relative_rms


def small(denoiser: nn.Module, *conditions: Condition, shape: tuple[int, ...] = (4, 8), **fields: Any) -> Model:
    """Build a flow around a denoiser whose latents are its media."""
    model = Model(
        name="small", process=Flow(timestep_scale=1.0), latent_shape=shape, denoiser=denoiser, conditions=conditions,
        media=Media("array", shape, "float32"), defaults=Defaults("flow-euler", 4), decoder=nn.Identity(),
    )  # fmt: skip
    return dataclasses.replace(model, **fields)


def array(name: str, *shape: int, dtype: str = "float32") -> Condition:
    return Condition(name, "array", shape=shape, dtype=dtype)


def played(bundle: Bundle, emulated: bool = False, **request: Any) -> np.ndarray:
    """Return the latents of a request; ``emulated``: every half value rounded, as on a GPU."""
    if not emulated:
        with load(bundle.folder, "ort-cpu", threads=1) as generator:
            return generator.generate(**request).latents
    with Generator(read_bundle(bundle.folder), EmulatedHalf(onnxruntime, None)) as generator:
        return generator.generate(**request).latents


class Head(nn.Module):
    """A policy's head that normalises its observation: poses 0.1 apart around 1000."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.register_buffer("state_mean", torch.full((6,), 1000.0))
        self.register_buffer("state_std", torch.full((6,), 0.1))
        self.state, self.x, self.out = nn.Linear(6, 32), nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor, timestep: Tensor, state: Tensor) -> Tensor:
        h = self.x(x) + timestep[:, None, None]
        match self.way:
            case "normalised":
                h = h + self.state((state - self.state_mean) / self.state_std)[:, None]
            case "difference":
                h = h + (state.mean(1)[:, None, None] - (h + 1000)) / self.state_std[0]
        return self.out(nn.functional.silu(h))


class TestObservations:
    @pytest.mark.parametrize("way", ["normalised", "difference"])
    def test_keep_their_digits_in_half_precision(self, way: str, tmp_path: Path) -> None:
        state = np.full(6, 1000, np.float32) + np.linspace(-0.2, 0.2, 6, dtype=np.float32)
        examples: tuple[Mapping[str, Any], ...] = ({"state": state},)
        model = small(Head(way), array("state", 6), examples=examples)
        with traced_once(tmp_path / "traces"):
            half = export(model, tmp_path / "half", policy="fp16")
            single = export(model, tmp_path / "single", policy="fp32")
        request = {"state": state, "seed": 3}
        right, other = played(single, **request), played(single, state=state + np.float32(0.05), seed=3)
        error, effect = relative_rms(played(half, emulated=True, **request), right), relative_rms(other, right)
        assert error < LIMITS["half, share of what another observation changes"] * effect

    def test_are_made_up_at_the_scale_of_the_models_statistics(self) -> None:
        scale = scale_of(small(Head("normalised")), array("state", 6))
        assert scale is not None
        np.testing.assert_allclose(scale[0], 1000)
        np.testing.assert_allclose(scale[1], 0.1)

    def test_that_were_made_up_are_told(self, tmp_path: Path) -> None:
        with pytest.warns(UserWarning, match=r"made-up values of state: give typical requests in Model\.examples"):
            bundle = export(small(Head("normalised"), array("state", 6)), tmp_path / "out", policy="fp32")
        assert bundle.made_up == ("state",)


def norm(goal: Tensor) -> Tensor:
    return goal / (goal.norm(dim=-1, keepdim=True) + 1e-8)


def normalise(goal: Tensor) -> Tensor:
    return nn.functional.normalize(goal, dim=-1)


def cosine(goal: Tensor) -> Tensor:
    return goal * nn.functional.cosine_similarity(goal, goal.flip(-1), dim=-1)[:, None]


def masked_mean(goal: Tensor) -> Tensor:
    seen = (goal > 0.5).float()
    return goal + (goal * seen).sum(-1, keepdim=True) / (seen.sum(-1, keepdim=True) + 1e-9)


def root(goal: Tensor) -> Tensor:
    return goal * torch.rsqrt(goal.square().mean(-1, keepdim=True) + 1e-10)


def logarithm(goal: Tensor) -> Tensor:
    return (goal.abs() + 1e-9).log() / 20


def reciprocal(goal: Tensor) -> Tensor:
    return goal * goal.abs().amax(-1, keepdim=True).clamp(min=1e-12).reciprocal()


class Guards(nn.Module):
    """Divides by what may be zero, in the ways that people guard it."""

    WAYS = (norm, normalise, cosine, masked_mean, root, logarithm, reciprocal)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8 + 3 * len(self.WAYS), 8)

    def forward(self, x: Tensor, timestep: Tensor, goal: Tensor) -> Tensor:
        told = torch.cat([way(goal) for way in self.WAYS], -1)[:, None].expand(-1, x.shape[1], -1)
        return self.linear(torch.cat([x, told], -1)) + timestep[:, None, None]


def test_a_goal_of_zero_gives_what_it_gives_in_torch(tmp_path: Path) -> None:
    model = small(Guards(), array("goal", 3), examples=({"goal": np.float32([0.3, 1.0, -0.2])},))
    policies: tuple[Literal["fp32", "fp16"], ...] = ("fp32", "fp16")
    with traced_once(tmp_path / "traces"):
        bundles = {policy: export(model, tmp_path / policy, policy=policy) for policy in policies}
    for goal in (np.zeros(3, np.float32), np.float32([1, 0, 0]), np.float32([1e-3, 0, 2e-3])):
        wanted = in_torch(model, goal, seed=1)
        for policy, bundle in bundles.items():
            latents = played(bundle, emulated=policy == "fp16", goal=goal, seed=1)
            assert relative_rms(latents, wanted) < LIMITS[f"four steps, {policy}"], (policy, goal)


def in_torch(model: Model, goal: np.ndarray, seed: int) -> np.ndarray:
    """Four of Euler's steps, from the seed's noise."""
    x = torch.from_numpy(noise(seed, 1, model.latent_shape))
    with torch.no_grad():
        for i in range(4):
            x = x - model.denoiser(x, torch.full((1,), 1 - i / 4), torch.from_numpy(goal)[None]) / 4
    return x.numpy()


def test_a_model_of_whole_numbers_has_no_halves_to_measure(tmp_path: Path) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 16), nn.Linear(16, 8)
            self.position = nn.Parameter(torch.randn(6, 16))

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.embedding(tokens) + self.position).transpose(1, 2)

    torch.manual_seed(0)
    model = small(Tokens(), shape=(6,), process=Masked(codes=8, mask_id=8), media=Media("array", (6,), "int64"),
                  defaults=Defaults("maskgit", 3))  # fmt: skip
    bundle = export(model, tmp_path / "out", policy="fp16")
    tokens = played(bundle)
    assert tokens.dtype == np.int64 and tokens.min() >= 0 and tokens.max() < 8


class Reshaped(nn.Module):
    """A condition that is flattened and meets the timestep, and another that the step alone reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.x, self.time, self.film = nn.Linear(8, 8), nn.Linear(1, 4), nn.Linear(10, 8)

    def forward(self, x: Tensor, timestep: Tensor, history: Tensor, offset: Tensor) -> Tensor:
        film = self.film(torch.cat([self.time(timestep[:, None]), history.flatten(1)], 1))
        return self.x(x + offset) * nn.functional.mish(film)[:, None]


def test_conditions_in_shapes_of_their_own(tmp_path: Path) -> None:
    """diffusion_policy's and lerobot's U-Nets flatten what was observed; GR00T's head reads the state in the step."""
    model = small(Reshaped(), array("history", 2, 3), array("offset", 4, 8))
    with pytest.warns(UserWarning, match="made-up values of history and offset"):
        bundle = export(model, tmp_path / "out", policy="fp16")
    request = {"history": np.ones((2, 3), np.float32), "offset": np.zeros((4, 8), np.float32)}
    assert played(bundle, **request).shape == (1, 4, 8)


def test_a_mask_with_minus_infinity_is_no_broken_checkpoint(tmp_path: Path) -> None:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(4))

        def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
            return self.layer(x + timestep[:, None, None], src_mask=self.mask)

    bundle = export(small(Causal()), tmp_path / "out", policy="fp16")
    assert bundle.precision.half_share["step"].weight_bytes > 0.9


class Modulated(nn.Module):
    """As many layers that the condition modulates as there are in a large DiT, six tensors in each, and little else."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(3, 8) for _ in range(layers))

    def forward(self, x: Tensor, timestep: Tensor, goal: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(x + layer(goal)[:, None])
        return x + timestep[:, None, None]


def test_a_deep_model_whose_sizes_are_more_than_a_small_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hoisted tensors of a DiT of 22 layers or more; sizes that left the graph could not be inferred.

    Two layers are as good, where what is small is less.
    """
    monkeypatch.setattr("mmgen.export.base.onnx_storage.EXTERNAL_BYTES", small_bytes := 64)
    model = small(Modulated(2 * 6), array("goal", 3), examples=({"goal": np.ones(3, np.float32)},))
    bundle = export(model, tmp_path / "out", policy="fp16")
    graph = onnx.load(bundle.path(bundle.graphs["step"].file), load_external_data=False).graph
    split = next(node for node in graph.node if node.op_type == "Split" and len(node.output) * 8 > small_bytes)
    sizes = next(tensor for tensor in graph.initializer if tensor.name == split.input[1])
    assert sizes.data_location == onnx.TensorProto.DEFAULT
