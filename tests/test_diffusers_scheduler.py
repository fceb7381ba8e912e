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
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)
from schedulers import denoise, far, in_float64, states_of
from tolerances import LIMITS

from mmgen.export.diffusers_scheduler import DEFAULTS, from_scheduler_config
from mmgen.runtime.errors import MmgenError
from mmgen.runtime.process import Diffusion, Flow
from mmgen.runtime.reference import run
from mmgen.runtime.solvers import exact

CLASSES = (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)
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
    DDPMScheduler: {**BETAS, **SAMPLED, **CLIPPED, "variance_type": ("fixed_small", "fixed_large")},
    PNDMScheduler: {**BETAS, "set_alpha_to_one": (False, True), "skip_prk_steps": (False, True)},
    EulerDiscreteScheduler: {
        **BETAS,
        **SAMPLED,
        "final_sigmas_type": ("zero", "sigma_min"),
        "use_karras_sigmas": (False, True),
        "sigma_min": (None,),
    },
    DPMSolverMultistepScheduler: {
        **BETAS,
        **SAMPLED,
        "solver_order": (1, 2),
        "solver_type": ("midpoint", "heun"),
        "lower_order_final": (False, True),
        "euler_at_final": (False, True),
        "use_exponential_sigmas": (False, True),
        "lambda_min_clipped": (-math.inf, -5.1),
    },
    FlowMatchEulerDiscreteScheduler: {
        "num_train_timesteps": (1000, 400),
        "shift": (1.0, 3, 0.5),
        "base_shift": (0.5, 0.7),
        "invert_sigmas": (False, True),
        "use_karras_sigmas": (False, True),
    },
}


def random_config(kind, seed):
    """Some of the class's keys, with any of their values."""
    rng = random.Random(seed)
    config = {key: rng.choice(values) for key, values in CHOICES[kind].items() if rng.random() < 0.6}
    if config.get("prediction_type", "epsilon") == "epsilon" and kind in (DDIMScheduler, DDPMScheduler):
        config.pop("rescale_betas_zero_snr", None)  # DDIM divides by zero there
    return config


@pytest.fixture
def double(monkeypatch):
    in_float64(monkeypatch)


@by_class
@pytest.mark.parametrize("seed", range(12))
def test_a_random_configuration_samples_as_in_diffusers(double, kind, seed):
    config = random_config(kind, seed)
    scheduler = kind(**config)
    written = {**config, "_class_name": kind.__name__, "_diffusers_version": "0.42.1", "unknown": 1}
    process, defaults = from_scheduler_config(json.loads(json.dumps(written)))
    if kind in (DDPMScheduler, PNDMScheduler):  # their process, DDIM's steps
        known = inspect.signature(DDIMScheduler).parameters
        fields = {key: value for key, value in scheduler.config.items() if key in known}
        scheduler = DDIMScheduler(**{"clip_sample": False, **fields})
        assert defaults.solver == "ddim"
    start = np.random.default_rng(seed).standard_normal((2, 3, 4))
    for steps in (1, 4, 20):
        rows = exact(defaults.solver, process, steps, sigmas=defaults.sigmas, options=defaults.solver_options)
        scheduler.set_timesteps(steps)
        for state, theirs in zip(run(rows, denoise, start), states_of(scheduler, start), strict=True):
            assert far(state[0], theirs) < LIMITS["solver, float64"], config


@by_class
def test_defaults_are_those_of_diffusers(kind):
    parameters = inspect.signature(kind).parameters
    assert DEFAULTS[kind.__name__] == {name: parameter.default for name, parameter in parameters.items()}


@by_class
def test_every_key_that_matters_is_covered(kind):
    """A configuration of nothing but its class's name is sampled with that class's defaults."""
    bare = from_scheduler_config({"_class_name": kind.__name__})
    assert bare == from_scheduler_config({"_class_name": kind.__name__, **DEFAULTS[kind.__name__]})


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
    pndm, _ = from_scheduler_config({"_class_name": "PNDMScheduler"})
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
    ("DDPMScheduler", "variance_type", "learned_range", "write the configuration of a DDIMScheduler"),
    ("EulerDiscreteScheduler", "use_beta_sigmas", True, "use_karras_sigmas"),
    ("EulerDiscreteScheduler", "interpolation_type", "log_linear", 'wanted "linear"'),
    ("DPMSolverMultistepScheduler", "algorithm_type", "sde-dpmsolver++", r'wanted "dpmsolver\+\+"'),
    ("DPMSolverMultistepScheduler", "solver_order", 3, "wanted 1 or 2"),
    ("DPMSolverMultistepScheduler", "solver_type", "bh2", 'wanted "midpoint" or "heun"'),
    ("DPMSolverMultistepScheduler", "use_lu_lambdas", True, "use_karras_sigmas"),
    ("DPMSolverMultistepScheduler", "use_flow_sigmas", True, "FlowMatchEulerDiscreteScheduler"),
    ("DPMSolverMultistepScheduler", "variance_type", "learned", "DDIMScheduler"),
    ("FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting", True, r"exp\(mu\)"),
    ("FlowMatchEulerDiscreteScheduler", "shift_terminal", 0.02, "set it to null"),
    ("FlowMatchEulerDiscreteScheduler", "stochastic_sampling", True, "set it to false"),
    ("FlowMatchEulerDiscreteScheduler", "shift", 0.0, "wanted more than 0"),
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
    with pytest.raises(MmgenError, match="both true"):
        from_scheduler_config({**euler, "use_exponential_sigmas": True, "use_karras_sigmas": True})


@pytest.mark.parametrize("name", [None, "LCMScheduler", ["DDIMScheduler"]])
def test_another_class_is_refused(name):
    with pytest.raises(MmgenError, match=r"_class_name.*wanted DDIMScheduler or"):
        from_scheduler_config({"_class_name": name})
