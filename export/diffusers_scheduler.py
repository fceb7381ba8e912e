"""diffusers' ``scheduler_config.json`` as a process and default solver settings.

A key that a file leaves out has the default of its scheduler class in diffusers
0.42; the classes differ there, so the defaults are written down per class.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from mmgen.runtime.bundle import Defaults
from mmgen.runtime.errors import MmgenError
from mmgen.runtime.process import Diffusion, Flow, Prediction, Process
from mmgen.runtime.schedules import Sigmas, alphas_cumprod, flow_levels

FILE = "scheduler_config.json"

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
}

_PREDICTIONS: Mapping[str, Prediction] = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v"}

_OTHER_SOLVER = "choose another solver; write the configuration of a DDIMScheduler with the same betas"
_OTHER_SIGMAS = "set it to false, and use_karras_sigmas or use_exponential_sigmas to true if you like"

# Keys that change the result: the values that are supported, and what to do about others.
_SUPPORTED: Mapping[str, tuple[tuple[object, ...], str]] = {
    "thresholding": ((False,), "set it to false; it is meant for models of pixels"),
    "prediction_type": (tuple(_PREDICTIONS), "for a flow, write a FlowMatchEulerDiscreteScheduler"),
    "timestep_spacing": (("leading", "linspace", "trailing"), "choose one of these"),
    "variance_type": (
        (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
        "write the configuration of a DDIMScheduler with the same betas; it leaves the learned variance unused",
    ),
    "interpolation_type": (("linear",), 'set it to "linear"'),
    "final_sigmas_type": (("zero", "sigma_min"), "choose one of these"),
    "use_beta_sigmas": ((False,), _OTHER_SIGMAS),
    "use_lu_lambdas": ((False,), _OTHER_SIGMAS),
    "use_flow_sigmas": ((False,), "for a flow, write a FlowMatchEulerDiscreteScheduler"),
    "use_dynamic_shifting": ((False,), 'set it to false and "shift" to exp(mu) of the picture size you sample at'),
    "algorithm_type": (("dpmsolver++",), _OTHER_SOLVER),
    "solver_order": ((1, 2), "choose one of these"),
    "solver_type": (("midpoint", "heun"), "choose one of these"),
    "shift_terminal": ((None,), "set it to null"),
    "stochastic_sampling": ((False,), "set it to false"),
}

_STEPS: Mapping[str, int] = {"ddim": 50, "euler": 30, "dpmpp-2m": 20, "flow-euler": 28}  # the usual in diffusers


def from_scheduler_config(config: Mapping[str, Any]) -> tuple[Process, Defaults]:
    """The process a diffusers model was trained with, and how it is sampled by default.

    DDPMScheduler and PNDMScheduler give their process only; it is sampled with DDIM.

    Args:
        config: the parsed ``scheduler_config.json``; keys that its class doesn't know are ignored, as diffusers does.

    Raises:
        MmgenError: an unknown class, a value of the wrong type, or a setting that changes the result and isn't
            supported; it names the key, its value and what to write instead.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in DEFAULTS:
        raise MmgenError(
            f"{FILE}: _class_name",
            got=repr(name),
            wanted=" or ".join(DEFAULTS),
            remedy="write the configuration of one of these with the same betas",
        )
    values = _values(config, DEFAULTS[name])
    match name:
        case "FlowMatchEulerDiscreteScheduler":
            return _flow(values), _defaults("flow-euler", values)
        case "EulerDiscreteScheduler":
            _check_euler(values)
            return _diffusion(values), _defaults("euler", values, "final_sigmas_type")
        case "DPMSolverMultistepScheduler":
            options = ["solver_order", "solver_type", "lower_order_final", "euler_at_final", "final_sigmas_type"]
            if values["lambda_min_clipped"] > -math.inf:
                options.append("lambda_min_clipped")
            return _diffusion(values), _defaults("dpmpp-2m", values, *options)
        case _:
            return _diffusion(values), _defaults("ddim", values)


def _values(config: Values, defaults: Values) -> dict[str, Any]:
    """Every key of a scheduler class: what the file says, else the default; checked."""
    unset = config.get("_use_default_values", ())  # keys that the writer of the file hadn't set either
    values = {key: config[key] if key in config and key not in unset else default for key, default in defaults.items()}
    for key, default in defaults.items():
        value, kind = values[key], type(default)
        fits = default is None or type(value) is kind or (kind is float and type(value) is int)
        if not fits:
            wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}[kind]
            raise MmgenError(f"{FILE}: {key}", got=repr(value), wanted=wanted, remedy="correct the file")
        supported, remedy = _SUPPORTED.get(key, ((value,), ""))
        if value not in supported:
            raise MmgenError(f"{FILE}: {key}", got=repr(value), wanted=_either(supported), remedy=remedy)
    return values


def _diffusion(values: Values) -> Diffusion:
    process = Diffusion(
        train_timesteps=values["num_train_timesteps"],
        beta_schedule=values["beta_schedule"],
        beta_start=float(values["beta_start"]),
        beta_end=float(values["beta_end"]),
        betas=_trained_betas(values),
        zero_terminal_snr=values.get("rescale_betas_zero_snr", False),
        prediction=_PREDICTIONS[values["prediction_type"]],
        spacing=values["timestep_spacing"],
        steps_offset=values["steps_offset"],
        final_alpha_one=values.get("set_alpha_to_one", True),
        clip=float(values["clip_sample_range"]) if values.get("clip_sample") else None,
    )
    alphas_cumprod(process)  # raises what is wrong with the betas
    return process


def _trained_betas(values: Values) -> tuple[float, ...] | None:
    betas = values["trained_betas"]
    schedules = ("linear", "scaled_linear", "squaredcos_cap_v2")
    if betas is None:
        if values["beta_schedule"] not in schedules:
            raise MmgenError(
                f"{FILE}: beta_schedule",
                got=repr(values["beta_schedule"]),
                wanted=_either(schedules),
                remedy="write the betas as a list into trained_betas",
            )
        return None
    if not isinstance(betas, list) or not all(type(beta) in (int, float) for beta in betas):
        raise MmgenError(f"{FILE}: trained_betas", got=f"{betas!r:.60}", wanted="a list of numbers")
    return tuple(map(float, betas))


def _check_euler(values: Values) -> None:
    if values["timestep_type"] == "continuous" and values["prediction_type"] == "v_prediction":
        raise MmgenError(
            f"{FILE}: timestep_type", got="'continuous'", wanted="'discrete'", remedy="there is no way around it yet"
        )
    for key in ("sigma_min", "sigma_max"):
        if values[key] is not None and _sigmas(values) != "schedule":
            raise MmgenError(f"{FILE}: {key}", got=values[key], wanted="null", remedy="leave the ends to the betas")


def _flow(values: Values) -> Flow:
    inverted = values["invert_sigmas"]  # time and velocity run from noise to data
    process = Flow(
        noise_time=0 if inverted else 1,
        velocity="data-noise" if inverted else "noise-data",
        timestep_scale=float(values["num_train_timesteps"]),
        shift=float(values["shift"]),
        schedule="diffusers",
        train_timesteps=values["num_train_timesteps"],
    )
    flow_levels(process, 1, "schedule")  # raises what is wrong with the shift
    return process


def _defaults(solver: str, values: Values, *options: str) -> Defaults:
    steps = max(1, min(_STEPS[solver], values["num_train_timesteps"] - 1))
    return Defaults(solver, steps, sigmas=_sigmas(values), solver_options={key: values[key] for key in options})


def _sigmas(values: Values) -> Sigmas:
    match values.get("use_karras_sigmas", False), values.get("use_exponential_sigmas", False):
        case False, False:
            return "schedule"
        case True, False:
            return "karras"
        case False, True:
            return "exponential"
        case _:
            raise MmgenError(
                f"{FILE}: use_karras_sigmas and use_exponential_sigmas",
                got="both true",
                wanted="at most one",
                remedy="set one of them to false",
            )


def _either(choices: tuple[object, ...]) -> str:
    return " or ".join(json.dumps(choice) for choice in choices)
