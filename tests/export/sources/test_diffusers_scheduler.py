"""A ``scheduler_config.json`` samples here as it does in diffusers."""

import inspect
import json
import math
import random

import numpy as np
import pytest
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from schedulers import CLASSES, follow, in_float64
from tolerances import LIMITS

from mmgen.export.sources.diffusers_scheduler import from_scheduler_config
from mmgen.export.sources.scheduler_keys import DEFAULTS
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.solvers.registry import exact
from mmgen.runtime.solvers.schedules import resolution_shift
from mmgen.runtime.storage.process import Diffusion, Flow

by_class = pytest.mark.parametrize("kind", CLASSES)

BETAS = {
    "num_train_timesteps": (1000, 400),
    "beta_start": (0.0001, 0.00085),
    "beta_end": (0.02, 0.012),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "steps_offset": (0, 1),
}
SAMPLED = {"prediction_type": ("epsilon", "v_prediction", "sample"), "rescale_betas_zero_snr": (False, True)}
CLIPPED = {"clip_sample": (False, True), "clip_sample_range": (1.0, 0.8)}
CHOICES = {  # values that a random configuration takes, where it has the key at all
    DDIMScheduler: {**BETAS, **SAMPLED, **CLIPPED, "set_alpha_to_one": (False, True), "sample_max_value": (1.0, 2.0)},
    DDPMScheduler: {
        **BETAS,
        **SAMPLED,
        **CLIPPED,
        "variance_type": ("fixed_small", "fixed_small_log", "fixed_large"),
    },
    PNDMScheduler: {**BETAS, "set_alpha_to_one": (False, True)},
    EulerAncestralDiscreteScheduler: {**BETAS, "rescale_betas_zero_snr": (False, True)},
    EulerDiscreteScheduler: {
        **BETAS,
        **SAMPLED,
        "final_sigmas_type": ("zero", "sigma_min"),
        "use_karras_sigmas": (False, True),
        "sigma_min": (None,),
    },
    HeunDiscreteScheduler: {**BETAS, **CLIPPED, "use_beta_sigmas": (False, True)},
    LMSDiscreteScheduler: {**BETAS, "use_exponential_sigmas": (False, True)},
    DPMSolverMultistepScheduler: {
        **BETAS,
        **SAMPLED,
        "solver_order": (1, 2, 3),
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
        "solver_type": ("midpoint", "heun"),
        "lower_order_final": (False, True),
        "euler_at_final": (False, True),
        "use_exponential_sigmas": (False, True),
        "lambda_min_clipped": (-math.inf, -5.1),
    },
    UniPCMultistepScheduler: {
        **BETAS,
        **SAMPLED,
        "solver_order": (1, 2, 3),
        "disable_corrector": ([], [0], [0, 1]),
        "use_karras_sigmas": (False, True),
        "use_exponential_sigmas": (False,),
    },
    FlowMatchEulerDiscreteScheduler: {
        "num_train_timesteps": (1000, 400),
        "shift": (1.0, 3, 0.5),
        "base_shift": (0.5, 0.7),
        "invert_sigmas": (False, True),
        "use_karras_sigmas": (False, True),
        "stochastic_sampling": (False, True),
    },
    FlowMatchHeunDiscreteScheduler: {"num_train_timesteps": (1000, 400), "shift": (1.0, 3, 0.5)},
}


def random_config(kind, seed):
    """Choose some of the class's keys, with any of their values."""
    rng = random.Random(seed)
    config = {key: rng.choice(values) for key, values in CHOICES[kind].items() if rng.random() < 0.6}
    if config.get("prediction_type", "epsilon") == "epsilon" and kind in (DDIMScheduler, DDPMScheduler):
        config.pop("rescale_betas_zero_snr", None)  # they divide by zero there
    if kind in (EulerAncestralDiscreteScheduler, PNDMScheduler) and config.get("prediction_type") == "sample":
        del config["prediction_type"]  # they have no such thing
    if kind is PNDMScheduler:
        config["skip_prk_steps"] = True
    if config.get("algorithm_type") == "sde-dpmsolver++" and config.get("solver_order") == 3:
        config["solver_order"] = 2
    if config.get("invert_sigmas"):
        config.pop("stochastic_sampling", None)
    return config


@pytest.fixture
def double(monkeypatch):
    in_float64(monkeypatch)


def written(kind, config):
    return json.loads(
        json.dumps({**config, "_class_name": kind.__name__, "_diffusers_version": "0.42.1", "unknown": 1})
    )


def compare(kind, config, steps, *, told=False):
    """Relative RMS between what we make of a configuration and the scheduler itself."""
    process, defaults = from_scheduler_config(written(kind, config))
    scheduler = kind(**config)
    scheduler.set_timesteps(steps)
    rows = exact(defaults.solver, process, steps, sigmas=defaults.sigmas, options=defaults.solver_options)
    return follow(scheduler, rows, np.float64, told=rows.timestep if told else None)


@by_class
@pytest.mark.parametrize("seed", range(12))
def test_a_random_configuration_samples_as_in_diffusers(double, kind, seed):
    config = random_config(kind, seed)
    cosine = kind is HeunDiscreteScheduler and config.get("beta_schedule") == "squaredcos_cap_v2"
    limit = LIMITS[
        "solver, float64, DDPM"
        if kind is DDPMScheduler
        else "solver, float64, noisiest"
        if cosine
        else "solver, float64"
    ]
    for steps in (1, 4, 20):
        assert compare(kind, config, steps) < limit, config


@pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"flow_shift": 3.0},
        {"num_train_timesteps": 400, "flow_shift": 5.0},
        {"solver_order": 3},
        {"algorithm_type": "sde-dpmsolver++"},
        {"shift_terminal": 0.1},
    ],
)
def test_flows_that_diffusion_schedulers_sample(double, kind, changes):
    """Sana's and Wan's kin."""
    config = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", **changes}
    if set(config) <= set(inspect.signature(kind).parameters):
        for steps in (2, 4, 20):
            assert compare(kind, config, steps, told=True) < LIMITS["solver, float64"]


@by_class
def test_defaults_are_those_of_diffusers(kind):
    parameters = inspect.signature(kind).parameters
    assert DEFAULTS[kind.__name__] == {name: parameter.default for name, parameter in parameters.items()}


@by_class
def test_every_key_that_matters_is_covered(kind):
    """A configuration of nothing but its class's name is sampled with that class's defaults."""
    least = {"_class_name": kind.__name__, **({"skip_prk_steps": True} if kind is PNDMScheduler else {})}
    assert from_scheduler_config(least) == from_scheduler_config({**DEFAULTS[kind.__name__], **least})


def test_the_configuration_that_dit_ships():
    process, defaults = from_scheduler_config(
        {
            "_class_name": "DDIMScheduler",
            "_diffusers_version": "0.12.0.dev0",
            "beta_end": 0.02,
            "beta_schedule": "linear",
            "beta_start": 0.0001,
            "clip_sample": False,
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "set_alpha_to_one": True,
            "steps_offset": 0,
            "trained_betas": None,
        }
    )
    assert process == Diffusion()
    assert (defaults.solver, defaults.steps, defaults.sigmas, defaults.solver_options) == ("ddim", 50, "schedule", {})


def test_classes_differ_in_what_they_leave_out():
    ddim, _ = from_scheduler_config({"_class_name": "DDIMScheduler"})
    pndm, _ = from_scheduler_config({"_class_name": "PNDMScheduler", "skip_prk_steps": True})
    dpm, defaults = from_scheduler_config({"_class_name": "DPMSolverMultistepScheduler"})
    assert (ddim.clip, ddim.final_alpha_one, ddim.spacing) == (1.0, True, "leading")
    assert (pndm.clip, pndm.final_alpha_one, pndm.spacing) == (None, False, "leading")
    assert (dpm.clip, dpm.spacing, defaults.solver) == (None, "linspace", "dpmpp-2m")


def test_keys_marked_as_unset_take_the_default():
    config = {"_class_name": "DDIMScheduler", "clip_sample": False, "_use_default_values": ["clip_sample"]}
    assert from_scheduler_config(config)[0].clip == 1.0


def test_trained_betas():
    betas = [0.01 * (i + 1) for i in range(10)]
    config = {"_class_name": "DDIMScheduler", "num_train_timesteps": 10, "trained_betas": betas}
    process, defaults = from_scheduler_config(config)
    assert process.betas == tuple(betas)
    assert defaults.steps == 9  # not more than there are timesteps
    with pytest.raises(MmgenError, match="explicit betas, got 10 values, wanted train_timesteps = 1000"):
        from_scheduler_config({**config, "num_train_timesteps": 1000})


def test_flow():
    process, defaults = from_scheduler_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    assert process == Flow(shift=3.0, schedule="diffusers")
    assert (defaults.solver, defaults.solver_options) == ("flow-euler", {})


UNSUPPORTED = [
    ("DDIMScheduler", "thresholding", True, "wanted false; set it to false"),
    ("DDIMScheduler", "prediction_type", "score", 'wanted "epsilon" or'),
    ("DDIMScheduler", "timestep_spacing", "even", 'wanted "leading" or "linspace" or "trailing"'),
    ("DDIMScheduler", "beta_schedule", "sigmoid", "trained_betas"),
    ("DDIMScheduler", "clip_sample", "no", "wanted true or false"),
    ("DDIMScheduler", "beta_end", "0.02", "wanted a number"),
    ("DDIMScheduler", "beta_end", 2.0, "every beta between 0 and 1"),
    ("DDIMScheduler", "beta_end", float("nan"), "every beta between 0 and 1"),
    ("DDIMScheduler", "num_train_timesteps", 1e3, "wanted a whole number"),
    ("DDIMScheduler", "num_train_timesteps", 0, "wanted at least 1"),
    ("DDIMScheduler", "trained_betas", "linear", "wanted a list of numbers"),
    ("EulerDiscreteScheduler", "interpolation_type", "log_linear", 'wanted "linear"'),
    ("DPMSolverMultistepScheduler", "solver_type", "bh2", 'wanted "midpoint" or "heun"'),
    ("DPMSolverMultistepScheduler", "use_lu_lambdas", True, "use_karras_sigmas"),
    ("FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting", True, r"exp\(mu\)"),
    ("FlowMatchEulerDiscreteScheduler", "shift", 0.0, "wanted more than 0"),
    ("DDPMScheduler", "variance_type", "learned_range", 'wanted "fixed_small" or .*DDIMScheduler'),
    ("DDPMScheduler", "variance_type", "fixed_large_log", 'wanted "fixed_small" or'),
    ("PNDMScheduler", "skip_prk_steps", False, "wanted true; set it to true"),
    ("DPMSolverMultistepScheduler", "algorithm_type", "dpmsolver", r'wanted "dpmsolver\+\+" or "sde-dpmsolver\+\+"'),
    ("DPMSolverMultistepScheduler", "solver_order", 4, "wanted 1 or 2 or 3"),
    ("DPMSolverMultistepScheduler", "use_flow_sigmas", True, 'wanted "flow_prediction" with use_flow_sigmas'),
    ("DPMSolverMultistepScheduler", "prediction_type", "flow_prediction", "with use_flow_sigmas, and only then"),
    ("DPMSolverMultistepScheduler", "variance_type", "learned", "wanted null"),
    ("DPMSolverMultistepScheduler", "use_dynamic_shifting", True, r"exp\(mu\)"),
    ("UniPCMultistepScheduler", "solver_type", "midpoint", 'wanted "bh1" or "bh2"'),
    ("UniPCMultistepScheduler", "solver_p", {"order": 2}, "wanted null"),
    ("UniPCMultistepScheduler", "disable_corrector", ["0"], "wanted a list of whole numbers"),
    ("UniPCMultistepScheduler", "disable_corrector", 0, "wanted a list"),
    ("HeunDiscreteScheduler", "beta_schedule", "exp", "trained_betas"),
    ("EulerAncestralDiscreteScheduler", "beta_schedule", "sigmoid", "trained_betas"),
    ("FlowMatchEulerDiscreteScheduler", "shift_terminal", "low", "wanted null or a number between 0 and 1"),
    ("FlowMatchEulerDiscreteScheduler", "shift_terminal", 1.5, "less than 1"),
    ("FlowMatchEulerDiscreteScheduler", "time_shift_type", "cubic", 'wanted "exponential" or "linear"'),
    ("FlowMatchHeunDiscreteScheduler", "shift", -1.0, "wanted more than 0"),
]


@pytest.mark.parametrize(("kind", "key", "value", "message"), UNSUPPORTED)
def test_what_is_not_supported_is_named(kind, key, value, message):
    with pytest.raises(MmgenError, match=message) as caught:
        from_scheduler_config({"_class_name": kind, key: value})
    assert len(str(caught.value).splitlines()) == 1


def test_what_matters_only_together_is_refused_only_together():
    euler = {"_class_name": "EulerDiscreteScheduler"}
    from_scheduler_config({**euler, "sigma_min": 0.02})
    with pytest.raises(MmgenError, match=r"sigma_min, got 0\.02, wanted null"):
        from_scheduler_config({**euler, "sigma_min": 0.02, "use_karras_sigmas": True})
    from_scheduler_config({**euler, "timestep_type": "continuous"})
    with pytest.raises(MmgenError, match="timestep_type, got 'continuous'"):
        from_scheduler_config({**euler, "timestep_type": "continuous", "prediction_type": "v_prediction"})
    with pytest.raises(MmgenError, match="use_karras_sigmas and use_beta_sigmas, got true together"):
        from_scheduler_config({**euler, "use_beta_sigmas": True, "use_karras_sigmas": True})
    dpm = {"_class_name": "DPMSolverMultistepScheduler"}
    with pytest.raises(MmgenError, match=r"solver_order, got 3, wanted 1 or 2 with sde-dpmsolver\+\+"):
        from_scheduler_config({**dpm, "algorithm_type": "sde-dpmsolver++", "solver_order": 3})
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    with pytest.raises(MmgenError, match="use_flow_sigmas, got True, wanted false with other sigmas"):
        from_scheduler_config({**dpm, **flow, "use_karras_sigmas": True})
    with pytest.raises(MmgenError, match=r'final_sigmas_type, got .sigma_min., wanted "zero" with use_flow_sigmas'):
        from_scheduler_config({**dpm, **flow, "final_sigmas_type": "sigma_min"})
    with pytest.raises(MmgenError, match="predict_x0, got False, wanted true with use_flow_sigmas"):
        from_scheduler_config({"_class_name": "UniPCMultistepScheduler", **flow, "predict_x0": False})
    with pytest.raises(MmgenError, match="stochastic_sampling, got True, wanted false with invert_sigmas"):
        inverted = {"invert_sigmas": True, "stochastic_sampling": True}
        from_scheduler_config({"_class_name": "FlowMatchEulerDiscreteScheduler", **inverted})


@pytest.mark.parametrize(
    ("config", "solver", "options"),
    [
        ({"_class_name": "DPMSolverMultistepScheduler"}, "dpmpp-2m", {}),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 1}, "dpmpp-2m", {"solver_order": 1}),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "dpmpp-3m", {}),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}, "dpmpp-sde-2m", {}),
        ({"_class_name": "UniPCMultistepScheduler", "solver_order": 3}, "unipc", {"solver_order": 3}),
        (
            {"_class_name": "UniPCMultistepScheduler", "disable_corrector": [0, 1], "solver_type": "bh1"},
            "unipc",
            {"disable_corrector": "0,1", "solver_type": "bh1"},
        ),
        ({"_class_name": "DDPMScheduler", "variance_type": "fixed_large"}, "ddpm", {"variance_type": "fixed_large"}),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": True},
            "flow-euler",
            {"stochastic_sampling": True},
        ),
    ],
)
def test_options_that_differ_from_the_defaults_are_kept(config, solver, options):
    _, defaults = from_scheduler_config(config)
    assert (defaults.solver, defaults.solver_options) == (solver, options)


def test_a_shift_that_depends_on_the_resolution():
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True, "shift": 3.0}
    process, _ = from_scheduler_config(config, tokens=1024)
    assert process == Flow(shift=resolution_shift(1024))
    assert process.shift == pytest.approx(math.exp(0.63))
    with pytest.raises(MmgenError, match=r"use_dynamic_shifting, got True, wanted false; set .* exp\(mu\)"):
        from_scheduler_config(config)
    with pytest.raises(MmgenError, match="max_image_seq_len"):
        from_scheduler_config({**config, "max_image_seq_len": 256}, tokens=1024)


@pytest.mark.parametrize("name", [None, "LCMScheduler", ["DDIMScheduler"]])
def test_another_class_is_refused(name):
    with pytest.raises(MmgenError, match=r"_class_name.*wanted DDIMScheduler or"):
        from_scheduler_config({"_class_name": name})
