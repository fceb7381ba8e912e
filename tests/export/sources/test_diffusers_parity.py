"""Bundles against diffusers' DiTPipeline, which made the folder: the same noise, classes, steps and guidance.

Decoders are compared on the same latents, so on the same codes: one code that differs changes a whole picture through
the group norms.  How many codes agree at the end of a trajectory is a figure of its own.
"""

import functools
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from diffusers_models import TINY_DIT, TINY_KL, TINY_VQ, TRUE_SIZES, build
from diffusers_pipeline import Made, figures, run_pipeline
from tolerances import LIMITS
from traced_once import traced_once

from mmgen.engines.builder import build as build_engines
from mmgen.engines.targets import parse
from mmgen.export.base.model import Model
from mmgen.export.exporter import export
from mmgen.export.sources import resolve
from mmgen.export.sources.diffusers_scheduler import from_scheduler_config
from mmgen.runtime.generator import Generator, load
from mmgen.runtime.request.noise import noise

log = logging.getLogger(__name__)  # --log-cli-level=info shows every figure

CLASSES = [3, 7, 0]


@dataclass(frozen=True)
class Case:
    """A model folder and the bundle made of it."""

    pipeline: Any
    generator: Generator


def noise_for(case: Case, count: int, seed: int = 0) -> np.ndarray:
    shape = (count, *case.generator.bundle.latent_shape)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def compare(case: Case, precision: str, theirs: Made, result: Any) -> dict[str, float]:
    """Latents, codes, and the decoder on the pipeline's latents; returns ``figures``."""
    assert theirs.pictures.std((1, 2)).min() > 0.1, "pictures without contrast prove nothing"
    apart = np.abs(np.diff(theirs.pictures, axis=0)).mean((1, 2, 3))
    assert (apart > 0.05).all(), "classes that look the same prove nothing"
    found = figures(case.pipeline, theirs, case.generator, result)
    log.info("%s: %s", precision, found)
    assert found.get("search", 1.0) == 1.0
    assert found["latents"] <= LIMITS[f"pipeline latents, {precision}"]
    assert found["decoder"] >= LIMITS[f"pipeline decoder PSNR, {precision}"]
    assert found.get("codes", 1.0) >= LIMITS[f"pipeline codes, {precision}"]
    return found


MODELS: dict[str, dict[str, Any]] = {
    "ddim": {},
    "ddim-v-clipped": {
        "transformer": TINY_DIT | {"in_channels": 4, "out_channels": 4, "num_layers": 2, "activation_fn": "gelu"},
        "autoencoder": TINY_VQ
        | {
            "latent_channels": 8,
            "vq_embed_dim": 4,
            "block_out_channels": (16, 16, 32),
            "layers_per_block": 2,
            "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
            "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        },
        "scheduler": diffusers.DDIMScheduler(
            prediction_type="v_prediction", clip_sample=True, clip_sample_range=1.5, timestep_spacing="trailing",
            rescale_betas_zero_snr=True,
        ),
    },
    "dpmpp-karras-kl": {
        "autoencoder": TINY_KL,
        "scheduler": diffusers.DPMSolverMultistepScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, use_karras_sigmas=True
        ),
    },
    "ddim-offset": {
        "transformer": TINY_DIT | {"patch_size": 4, "num_embeds_ada_norm": 1000},
        "scheduler": diffusers.DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1,
            set_alpha_to_one=False,
        ),
    },
}  # fmt: skip

FLOW: dict[str, Any] = {"scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0)}

SCHEDULERS: dict[str, Any] = {
    "DDPM": diffusers.DDPMScheduler(clip_sample=False),
    "DPMSolverMultistep": diffusers.DPMSolverMultistepScheduler(timestep_spacing="leading"),
    "DPMSolverMultistep, order 3": diffusers.DPMSolverMultistepScheduler(timestep_spacing="leading", solver_order=3),
    "DPMSolverMultistep, SDE": diffusers.DPMSolverMultistepScheduler(
        timestep_spacing="leading", algorithm_type="sde-dpmsolver++"
    ),
    "Euler": diffusers.EulerDiscreteScheduler(timestep_spacing="leading"),
    "EulerAncestral": diffusers.EulerAncestralDiscreteScheduler(timestep_spacing="leading"),
    "FlowMatchEuler": diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0),
    "FlowMatchHeun": diffusers.FlowMatchHeunDiscreteScheduler(shift=2.0),
    "Heun": diffusers.HeunDiscreteScheduler(timestep_spacing="leading", beta_start=0.0001, beta_end=0.02),
    "LMS": diffusers.LMSDiscreteScheduler(timestep_spacing="leading", use_karras_sigmas=True),
    "PNDM": diffusers.PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=True),
    "UniPC": diffusers.UniPCMultistepScheduler(timestep_spacing="leading", solver_order=3),
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Cases by model and precision; a bundle is made when it is first asked for."""
    root = tmp_path_factory.mktemp("parity")
    made: dict[tuple[str, str], Case] = {}

    @functools.cache
    def source(name: str) -> tuple[Any, Model]:
        return build(root / name, **(MODELS | {"flow": FLOW})[name]), resolve(str(root / name))

    def case(name: str, precision: str) -> Case:
        if (name, precision) not in made:
            pipeline, model = source(name)
            bundle = root / f"{name}-{precision}.mmgen"
            export(model, bundle, policy=precision)
            made[name, precision] = Case(pipeline, load(bundle, "ort-cpu"))
        return made[name, precision]

    with traced_once(root / "traces"):
        yield case
    for opened in made.values():
        opened.generator.close()


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("name", MODELS)
def test_the_default_solver_makes_what_the_pipeline_makes(cases: Any, name: str, guidance: float) -> None:
    case = cases(name, "fp32")
    first = noise_for(case, len(CLASSES))
    theirs = run_pipeline(case.pipeline, CLASSES, first, 20, guidance)
    result = case.generator.generate(class_id=CLASSES, noise=first, steps=20, guidance=guidance)
    compare(case, "fp32", theirs, result)


def test_half_precision_makes_what_the_pipeline_makes(cases: Any) -> None:
    case = cases("ddim-v-clipped", "fp16")
    first = noise_for(case, len(CLASSES))
    theirs = run_pipeline(case.pipeline, CLASSES, first, 20, 4.0)
    result = case.generator.generate(class_id=CLASSES, noise=first, steps=20, guidance=4.0)
    compare(case, "fp16", theirs, result)


@pytest.mark.parametrize(("name", "precision"), [("dpmpp-karras-kl", "fp32"), ("ddim-v-clipped", "fp16")])
def test_its_graphs_compile_for_a_gpu(cases: Any, name: str, precision: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    bundle = cases(name, precision).generator.bundle
    _, made, _ = build_engines(bundle, parse(["sm86"]))
    assert set(made.engines) == set(bundle.graphs)
    step = made.engines["step"].report
    assert (step.half_weight_bytes > 0.95 * step.float_weight_bytes) == (precision == "fp16")


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_solver_makes_what_the_pipeline_makes_with_its_scheduler(cases: Any, name: str) -> None:
    """One bundle, and all schedulers of its process: ``pipe.scheduler = ...``, as DiTPipeline's page does it."""
    scheduler = SCHEDULERS[name]
    case = cases("flow" if name.startswith("FlowMatch") else "ddim", "fp32")
    process, defaults = from_scheduler_config(json.loads(scheduler.to_json_string()))
    assert process == case.generator.bundle.process
    steps, shape = 15, case.generator.bundle.latent_shape
    first = noise_for(case, 2)
    mine, case.pipeline.scheduler = case.pipeline.scheduler, scheduler
    try:
        noises = [noise(6, 2, shape, stream=row + 1) for row in range(steps)]
        theirs = run_pipeline(case.pipeline, [1, 2], first, steps, 4.0, noises)
    finally:
        case.pipeline.scheduler = mine
    result = case.generator.generate(
        class_id=[1, 2], noise=first, steps=steps, guidance=4.0, seed=6,
        solver=defaults.solver, sigmas=defaults.sigmas, options=defaults.solver_options,
    )  # fmt: skip
    found = compare(case, "fp32", theirs, result)
    assert found["end to end"] >= LIMITS["pipeline pictures PSNR, fp32"]


def test_one_sample_and_guidance_by_the_null_class(cases: Any) -> None:
    """Guidance zero is the null class alone: the same picture whatever the class."""
    case = cases("ddim", "fp32")
    first = noise_for(case, 1)
    one, other = (case.generator.generate(class_id=c, noise=first, steps=5, guidance=0.0) for c in (1, 2))
    assert np.array_equal(one.latents, other.latents)
    null = run_pipeline(case.pipeline, [1000], first, 5, 1.0)
    compare(case, "fp32", null, one)


@pytest.mark.slow
def test_a_model_of_published_width(tmp_path: Path) -> None:
    """DiT-S/2 for 256 x 256 pictures with two of its layers, over LDM's vq-f8 at a quarter of its width and half deep.

    All of both is in benchmarks/true_sizes.py, and blocks of more layers in the small models above.
    """
    transformer, autoencoder, *_ = TRUE_SIZES["DiT-S-2-vq-f8"]
    widths = tuple(width // 4 for width in autoencoder["block_out_channels"])
    quarter = {"block_out_channels": widths, "layers_per_block": 1}
    pipeline = build(tmp_path / "s", transformer | {"num_layers": 2}, autoencoder | quarter, count=64)
    export(resolve(str(tmp_path / "s")), tmp_path / "s.mmgen", policy="fp32")
    with load(tmp_path / "s.mmgen", "ort-cpu") as generator:
        case = Case(pipeline, generator)
        first = noise_for(case, 1)
        theirs = run_pipeline(pipeline, [5], first, 5, 4.0)
        compare(case, "fp32", theirs, generator.generate(class_id=5, noise=first, steps=5, guidance=4.0))
