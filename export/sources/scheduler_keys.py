"""Keys of diffusers' scheduler classes: defaults, and the values that are understood."""

import math
from collections.abc import Mapping
from typing import Any

Values = Mapping[str, Any]

_BETAS: Values = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
}
_THRESHOLDING: Values = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_SIGMAS: Values = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}

# Every key of every class, whether or not it means something here, with its default.
DEFAULTS: Mapping[str, Values] = {
    "DDIMScheduler": {
        **_BETAS,
        **_THRESHOLDING,
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "rescale_betas_zero_snr": False,
    },
    "DDPMScheduler": {
        **_BETAS,
        **_THRESHOLDING,
        "variance_type": "fixed_small",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "steps_offset": 0,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "rescale_betas_zero_snr": False,
    },
    "PNDMScheduler": {
        **_BETAS,
        "skip_prk_steps": False,
        "set_alpha_to_one": False,
        "steps_offset": 0,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
    },
    "EulerAncestralDiscreteScheduler": {
        **_BETAS,
        "prediction_type": "epsilon",
        "timestep_spacing": "linspace",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
    },
    "EulerDiscreteScheduler": {
        **_BETAS,
        **_SIGMAS,
        "prediction_type": "epsilon",
        "interpolation_type": "linear",
        "sigma_min": None,
        "sigma_max": None,
        "timestep_spacing": "linspace",
        "timestep_type": "discrete",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
        "final_sigmas_type": "zero",
    },
    "DPMSolverMultistepScheduler": {
        **_BETAS,
        **_THRESHOLDING,
        **_SIGMAS,
        "solver_order": 2,
        "prediction_type": "epsilon",
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        "use_lu_lambdas": False,
        "use_flow_sigmas": False,
        "flow_shift": 1.0,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
        "timestep_spacing": "linspace",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
        "use_dynamic_shifting": False,
        "time_shift_type": "exponential",
    },
    "HeunDiscreteScheduler": {
        **_BETAS,
        **_SIGMAS,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "epsilon",
        "clip_sample": False,
        "clip_sample_range": 1.0,
        "timestep_spacing": "linspace",
        "steps_offset": 0,
    },
    "LMSDiscreteScheduler": {
        **_BETAS,
        **_SIGMAS,
        "prediction_type": "epsilon",
        "timestep_spacing": "linspace",
        "steps_offset": 0,
    },
    "UniPCMultistepScheduler": {
        **_BETAS,
        **_THRESHOLDING,
        **_SIGMAS,
        "solver_order": 2,
        "prediction_type": "epsilon",
        "predict_x0": True,
        "solver_type": "bh2",
        "lower_order_final": True,
        "disable_corrector": [],
        "solver_p": None,
        "use_flow_sigmas": False,
        "flow_shift": 1.0,
        "timestep_spacing": "linspace",
        "steps_offset": 0,
        "final_sigmas_type": "zero",
        "rescale_betas_zero_snr": False,
        "use_dynamic_shifting": False,
        "time_shift_type": "exponential",
        "sigma_min": None,
        "sigma_max": None,
        "shift_terminal": None,
    },
    "FlowMatchEulerDiscreteScheduler": {
        **_SIGMAS,
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "use_dynamic_shifting": False,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "invert_sigmas": False,
        "shift_terminal": None,
        "time_shift_type": "exponential",
        "stochastic_sampling": False,
    },
    "FlowMatchHeunDiscreteScheduler": {"num_train_timesteps": 1000, "shift": 1.0},
}

_OTHER_SIGMAS = "set it to false, and use_karras_sigmas, use_exponential_sigmas or use_beta_sigmas to true if you like"
_MU = "set it to false and the shift to exp(mu) of the picture size you sample at"

Choices = tuple[tuple[object, ...], str]  # the values that are understood, and what to do about others

# Keys that change the result.
_ANY_CLASS: Mapping[str, Choices] = {
    "thresholding": ((False,), "set it to false; its threshold depends on the sample, and it is meant for pixels"),
    "prediction_type": (("epsilon", "sample", "v_prediction"), "for a flow, write a FlowMatchEulerDiscreteScheduler"),
    "timestep_spacing": (("leading", "linspace", "trailing"), "choose one of these"),
    "interpolation_type": (("linear",), 'set it to "linear"'),
    "final_sigmas_type": (("zero", "sigma_min"), "choose one of these"),
    "use_lu_lambdas": ((False,), _OTHER_SIGMAS),
    "solver_p": ((None,), "set it to null"),
    "time_shift_type": (("exponential", "linear"), "choose one of these"),
}
_DPM_OR_UNIPC: Mapping[str, Choices] = {
    "prediction_type": (("epsilon", "sample", "v_prediction", "flow_prediction"), "choose one of these"),
    "solver_order": ((1, 2, 3), "choose one of these"),
    "use_dynamic_shifting": ((False,), _MU),
}
_ONE_CLASS: Mapping[str, Mapping[str, Choices]] = {
    "DDPMScheduler": {
        "variance_type": (
            ("fixed_small", "fixed_small_log", "fixed_large"),
            "choose one of these, or write a DDIMScheduler with the same betas; a learned variance stays unused",
        ),
    },
    "PNDMScheduler": {
        "skip_prk_steps": ((True,), "set it to true; Runge-Kutta steps remember more than a step graph holds"),
    },
    "DPMSolverMultistepScheduler": {
        **_DPM_OR_UNIPC,
        "algorithm_type": (("dpmsolver++", "sde-dpmsolver++"), "choose one of these"),
        "solver_type": (("midpoint", "heun"), "choose one of these"),
        "variance_type": ((None,), "set it to null; a learned variance stays unused"),
    },
    "UniPCMultistepScheduler": {**_DPM_OR_UNIPC, "solver_type": (("bh1", "bh2"), "choose one of these")},
}


def choices(name: str, key: str) -> Choices | None:
    """Return what a key of a class may be and what to do about other values; None: anything of its type."""
    return _ONE_CLASS.get(name, {}).get(key) or _ANY_CLASS.get(key)
