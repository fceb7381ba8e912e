"""Bundles of hoisted graphs make the same latents, and what is kept between requests is what didn't change."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from action_head import action_head
from counting import Counting
from diffusers_models import TINY_DIT
from diffusers_models import build as build_diffusers
from tiny import tiny_model
from tiny_text import tiny_text_model
from tolerances import LIMITS
from traced_once import traced_once

from mmgen.export.base.model import Model
from mmgen.export.exporter import export
from mmgen.export.sources import resolve
from mmgen.runtime.backends.ort.cpu import OrtCpu
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.generator import Generator, load
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.schema import Axis, Defaults
from mmgen.runtime.verify import relative_rms

# Bundles


def diffusers_dit(folder: Path) -> Model:
    build_diffusers(folder, TINY_DIT | {"num_layers": 1}, count=32)
    return resolve(str(folder))


MODELS: dict[str, tuple[Callable[[Path], Model], dict[str, Any]]] = {
    "text": (lambda _: tiny_text_model(), {"prompt": "red cat"}),
    "a DiT of diffusers": (diffusers_dit, {"class_id": 7}),
    "action head": (
        lambda _: action_head(),
        {"context": np.ones((12, 64), np.float32), "joints": np.ones(6, np.float32)},
    ),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, bool], Path]]:
    """Return a function that exports a model by name, hoisted or not, once."""
    root = tmp_path_factory.mktemp("exported")

    @functools.cache
    def model(name: str) -> Model:
        return MODELS[name][0](root / f"{name} source")

    @functools.cache
    def folder(name: str, hoisting: bool) -> Path:
        out = root / f"{name}{' hoisted' if hoisting else ''}"
        export(model(name), out, policy="fp32", hoist=hoisting)
        return out

    with traced_once(root / "traces"):
        yield folder


@pytest.fixture(params=MODELS)
def pair(request: pytest.FixtureRequest, exported: Callable[[str, bool], Path]) -> Iterator[tuple[Any, ...]]:
    """Open a model's bundle hoisted and not, with a request."""
    name = request.param
    with load(exported(name, True), "ort-cpu") as one, load(exported(name, False), "ort-cpu") as other:
        yield one, other, MODELS[name][1]


@pytest.mark.slow
def test_latents_are_the_same(pair: tuple[Generator, Generator, dict[str, Any]]) -> None:
    one, other, asked = pair
    requests: list[dict[str, Any]] = [{}, {"steps": 1}, {"steps": 5, "count": 3}, {"steps": 2, "seed": 1}]
    if any(c.null is not None for c in one.bundle.conditions):
        requests += [{"guidance": 1.0}, {"guidance": 6.0, "steps": 3}]
    if one.bundle.process.kind == "diffusion":
        requests += [{"solver": "ddpm", "steps": 4}, {"solver": "unipc", "steps": 4}]
    for request in requests:
        got, wanted = (generator.generate(**asked, **request).latents for generator in (one, other))
        assert relative_rms(got, wanted) < LIMITS["hoisted latents"], request


@pytest.mark.slow
def test_a_bundle_says_what_was_hoisted(pair: tuple[Generator, Generator, dict[str, Any]]) -> None:
    one, other, _ = pair
    hoisting = one.bundle.hoisting
    assert other.bundle.hoisting is None and hoisting is not None
    assert hoisting.weight_bytes[1] < hoisting.weight_bytes[0] and hoisting.operations[1] < hoisting.operations[0]
    step = {spec.name for spec in one.bundle.graphs["step"].inputs}
    made = {spec.name for role in ("condition", "timestep") for spec in one.bundle.graphs[role].outputs}
    assert set(hoisting.tensors) <= made and step & set(hoisting.tensors)
    validated = {(receipt.level, receipt.graph) for receipt in one.bundle.receipts}
    assert {(1, "condition"), (1, "timestep"), (1, "step")} <= validated


@pytest.mark.slow
def test_half_packs_are_half_on_both_sides(bundle_folder: Path) -> None:
    bundle = read_bundle(bundle_folder)
    assert bundle.hoisting is not None and bundle.precision.policy == "fp16"
    outputs = {s.name: s.dtype for r in ("condition", "timestep") for s in bundle.graphs[r].outputs}  # type: ignore[index]
    inputs = {spec.name: spec.dtype for spec in bundle.graphs["step"].inputs if spec.name in outputs}
    assert inputs == {"condition_invariants": "float16", "timestep_invariants": "float16"}
    assert inputs.items() <= outputs.items()


@pytest.mark.slow
def test_large_tensors_are_inputs_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values of a long context, in half precision: nothing copies them, and their bytes are halved."""
    monkeypatch.setattr("mmgen.export.hoisting.hoist.ALONE", 1024)
    bundle = export(action_head(), tmp_path / "out", policy="fp16")
    inputs = {spec.name: spec for spec in bundle.graphs["step"].inputs if spec.name.startswith("invariant_")}
    shapes = [spec.shape for spec in inputs.values()]
    assert Counter(shapes) == {("G", "B", 4, 12, 16): 3, ("G", "B", 4, 16, 12): 3}, "values, and keys transposed"
    assert {spec.dtype for spec in inputs.values()} == {"float16"}
    assert inputs.keys() < {spec.name for spec in bundle.graphs["condition"].outputs}


class Frozen(torch.nn.Module):
    """A denoiser that looks neither at the time nor at a condition."""

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return x / (1 + x.square())


@pytest.mark.slow
def test_a_model_without_anything_to_hoist_exports(tmp_path: Path) -> None:
    model = dataclasses.replace(
        tiny_model(), denoiser=Frozen(), conditions=(), condition=None, conditioning=(), defaults=Defaults("ddim", 4)
    )
    bundle = export(model, tmp_path / "out", policy="fp32")
    assert bundle.hoisting is None and "timestep" not in bundle.graphs
    with load(tmp_path / "out", "ort-cpu") as generator:
        assert generator.generate(steps=2).timings.timestep == 0


# What is kept between requests


@pytest.fixture(params=[("text", "prompt", ("red cat", "blue")), ("a DiT of diffusers", "class_id", (3, 5))], ids=str)
def counted(
    request: pytest.FixtureRequest, exported: Callable[[str, bool], Path]
) -> Iterator[tuple[Generator, Counting, str, tuple[Any, Any]]]:
    model, name, values = request.param
    backend = Counting()
    with Generator(read_bundle(exported(model, True)), backend) as generator:
        yield generator, backend, name, values


Counted = tuple[Generator, Counting, str, tuple[Any, Any]]


def both(generator: Generator) -> dict[str, int]:
    """Return the calls that a new condition costs."""
    timed_by_condition = len(generator.bundle.graphs["timestep"].inputs) > 1
    return {"condition": 1, "timestep": 1} if timed_by_condition else {"condition": 1}


@pytest.mark.slow
def test_only_what_changed_is_computed_again(counted: Counted) -> None:
    generator, backend, name, (first, second) = counted
    all_of_it = {"condition": 1, "timestep": 1}
    expected: list[tuple[dict[str, Any], dict[str, int]]] = [
        ({name: first, "steps": 4}, all_of_it),
        ({name: first, "steps": 4}, {}),
        ({name: first, "steps": 4, "seed": 1}, {}),
        ({name: second, "steps": 4}, both(generator)),
        ({name: second, "steps": 4, "guidance": 7.0}, {}),
        ({name: first, "steps": 4}, both(generator)),
        ({name: first, "steps": 4, "solver": "dpmpp-2m"}, {"timestep": 1}),
        ({name: first, "steps": 4, "solver": "dpmpp-2m"}, {}),
        ({name: first, "steps": 4}, {"timestep": 1}),
        ({name: first, "steps": 5}, all_of_it),
        ({name: first, "steps": 4, "guidance": 1.0}, all_of_it),
        ({name: first, "steps": 4, "count": 2}, all_of_it),
        ({name: first, "steps": 4}, {}),
    ]
    for request, calls in expected:
        result = generator.generate(**request)
        assert backend.since() == calls, request
        assert (result.timings.timestep > 0) == ("timestep" in calls)
        with Generator(generator.bundle, OrtCpu(onnxruntime, 1)) as fresh:
            assert np.array_equal(result.latents, fresh.generate(**request).latents), request


@pytest.mark.slow
@pytest.mark.parametrize("role", ["condition", "timestep"])
def test_what_failed_is_not_kept(counted: Counted, role: str) -> None:
    generator, backend, name, (first, second) = counted
    request = {name: first, "steps": 3}
    wanted = generator.generate(**request).latents
    backend.fail = role
    with pytest.raises(MmgenError, match="the device failed"):
        generator.generate(**{name: second, "steps": 3, "solver": "dpmpp-2m"})
    backend.fail = None
    backend.since()
    assert np.array_equal(generator.generate(**request).latents, wanted)
    assert backend.since() == {"condition": 1, "timestep": 1}


@pytest.mark.slow
def test_long_tables_are_computed_in_pieces(counted: Counted) -> None:
    generator, _, name, (first, _) = counted
    request = {name: first, "steps": 8}
    wanted = generator.generate(**request).latents
    axes = generator.bundle.axes | {"N": Axis(1, 3, 3)}
    short = Counting()
    with Generator(dataclasses.replace(generator.bundle, axes=axes), short) as pieces:
        got = pieces.generate(**request).latents
    assert short.since() == {"condition": 1, "timestep": 3}
    assert relative_rms(got, wanted) < LIMITS["hoisted latents"]
