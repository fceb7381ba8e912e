"""diffusers' ``scheduler_config.json`` as a process and default solver settings.

A key that a file leaves out has the default of its scheduler class in diffusers
0.42; the classes differ there, so the defaults are written down per class.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmgen.export.sources.scheduler_keys import DEFAULTS, Values, choices
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.solvers.schedules import alphas_cumprod, flow_levels, resolution_shift
from mmgen.runtime.storage.process import Diffusion, Flow, Prediction, Process
from mmgen.runtime.storage.schema import Defaults, Sigmas

FILE = "scheduler_config.json"

_PREDICTIONS: Mapping[str, Prediction] = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v"}

_ONE_TO_ONE: Mapping[str, str] = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "plms",
    "EulerAncestralDiscreteScheduler": "euler-ancestral",
    "EulerDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "heun",
    "LMSDiscreteScheduler": "lms",
    "UniPCMultistepScheduler": "unipc",
    "FlowMatchEulerDiscreteScheduler": "flow-euler",
    "FlowMatchHeunDiscreteScheduler": "flow-heun",
}
_STEPS: Mapping[str, int] = {  # the usual in diffusers
    "ddpm": 1000, "ddim": 50, "plms": 50, "euler": 30, "euler-ancestral": 30, "lms": 30, "heun": 20, "dpmpp-2m": 20,
    "dpmpp-3m": 20, "dpmpp-sde-2m": 20, "unipc": 20, "flow-euler": 28, "flow-heun": 28,
}  # fmt: skip

# Keys that are options of a solver too, of the same name and default.
_OPTIONS = ("variance_type", "stochastic_sampling", "solver_type", "lower_order_final")
_DIFFUSION_OPTIONS = ("predict_x0", "euler_at_final", "final_sigmas_type", "lambda_min_clipped")


def from_scheduler_config(config: Mapping[str, Any], *, tokens: int | None = None) -> tuple[Process, Defaults]:
    """Return the process that a diffusers model was trained with, and its default sampling.

    Args:
        config: the parsed ``scheduler_config.json``; keys that its class doesn't know are ignored, as diffusers does.
        tokens: how many the denoiser makes of the latents, on which the shift of some flows depends.

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
    values = _values(config, name)
    _check_together(values)
    along_flow = name.startswith("FlowMatch") or values.get("use_flow_sigmas", False)
    process = _flow(values, name, tokens) if along_flow else _diffusion(values)
    solver = _dpm_solver(values) if name == "DPMSolverMultistepScheduler" else _ONE_TO_ONE[name]
    most = values["num_train_timesteps"] - (solver != "ddpm")  # leading spacing can't have all
    options = {
        key: values[key]
        for key in (*_OPTIONS, *(() if along_flow else _DIFFUSION_OPTIONS))
        if key in values and values[key] != DEFAULTS[name][key]
    }
    if values.get("solver_order", 2) != (3 if solver == "dpmpp-3m" else 2):
        options["solver_order"] = values["solver_order"]
    if values.get("disable_corrector"):
        options["disable_corrector"] = ",".join(map(str, values["disable_corrector"]))
    return process, Defaults(solver, max(1, min(_STEPS[solver], most)), sigmas=_sigmas(values), solver_options=options)


def _values(config: Values, name: str) -> dict[str, Any]:
    """Return every key of a scheduler class with the file's value, else the default, each checked on its own."""
    defaults = DEFAULTS[name]
    unset = config.get("_use_default_values", ())  # keys that the writer of the file hadn't set either
    values = {key: config[key] if key in config and key not in unset else default for key, default in defaults.items()}
    for key, default in defaults.items():
        value, kind = values[key], type(default)
        fits = default is None or type(value) is kind or (kind is float and type(value) is int)
        if not fits:
            wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", list: "a list"}
            raise MmgenError(f"{FILE}: {key}", got=repr(value), wanted=wanted[kind], remedy="correct the file")
        if (known := choices(name, key)) and value not in known[0]:
            raise MmgenError(f"{FILE}: {key}", got=repr(value), wanted=_either(known[0]), remedy=known[1])
    return values


def _check_together(values: Values) -> None:
    """Raise MmgenError for values that are understood alone, but not together."""
    respaced, along_flow = _sigmas(values) != "schedule", values.get("use_flow_sigmas", False)
    if values.get("timestep_type") == "continuous" and values["prediction_type"] == "v_prediction":
        raise _refused("timestep_type", values, '"discrete"', "there is no way around it yet")
    for key in ("sigma_min", "sigma_max"):
        if values.get(key) is not None and respaced:
            raise _refused(key, values, "null", "leave the ends to the betas")
    if not all(type(step) is int for step in values.get("disable_corrector", ())):
        raise _refused("disable_corrector", values, "a list of whole numbers", "correct the file")
    if values.get("algorithm_type") == "sde-dpmsolver++" and values["solver_order"] == 3:
        raise _refused("solver_order", values, "1 or 2 with sde-dpmsolver++", "set it to 2")
    if values.get("stochastic_sampling") and values["invert_sigmas"]:
        raise _refused("stochastic_sampling", values, "false with invert_sigmas", "set it to false")
    if "use_flow_sigmas" in values and along_flow != (values["prediction_type"] == "flow_prediction"):
        wanted = '"flow_prediction" with use_flow_sigmas, and only then'
        raise _refused("prediction_type", values, wanted, "correct the file")
    if along_flow and respaced:
        raise _refused("use_flow_sigmas", values, "false with other sigmas", "leave out the other sigmas")
    if along_flow and not values.get("predict_x0", True):
        raise _refused("predict_x0", values, "true with use_flow_sigmas", "set it to true")
    if along_flow and values["final_sigmas_type"] != "zero":
        raise _refused("final_sigmas_type", values, '"zero" with use_flow_sigmas', 'set it to "zero"')


def _refused(key: str, values: Values, wanted: str, remedy: str) -> MmgenError:
    return MmgenError(f"{FILE}: {key}", got=repr(values[key]), wanted=wanted, remedy=remedy)


def _dpm_solver(values: Values) -> str:
    if values["algorithm_type"] == "sde-dpmsolver++":
        return "dpmpp-sde-2m"
    return "dpmpp-3m" if values["solver_order"] == 3 else "dpmpp-2m"


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


def _flow(values: Values, name: str, tokens: int | None) -> Flow:
    """Build a flow; the schedules of three classes differ, and DPM-Solver++ and UniPC take whole timesteps."""
    inverted = values.get("invert_sigmas", False)  # time and velocity run from noise to data
    terminal = values.get("shift_terminal") or None
    if terminal is not None and type(terminal) is not float:
        raise _refused("shift_terminal", values, "null or a number between 0 and 1", "correct the file")
    common = Flow(
        noise_time=0 if inverted else 1,
        velocity="data-noise" if inverted else "noise-data",
        timestep_scale=float(values["num_train_timesteps"]),
        terminal=terminal,
        train_timesteps=values["num_train_timesteps"],
    )
    process: Flow
    match name:
        case "DPMSolverMultistepScheduler":
            shift = float(values["flow_shift"])
            process = replace(common, shift=shift, schedule="dpm", integer_timesteps=True)
        case "UniPCMultistepScheduler":
            shift = float(values["flow_shift"])
            process = replace(common, shift=shift, schedule="unipc", integer_timesteps=True)
        case _ if values.get("use_dynamic_shifting"):
            # The pipelines that shift dynamically (FLUX's and its kin's) ask for even sigmas of their own.
            process = replace(common, shift=_dynamic_shift(values, tokens), schedule="uniform")
        case _:
            process = replace(common, shift=float(values["shift"]), schedule="diffusers")
    flow_levels(process, 1, "schedule")  # raises what is wrong with the shift
    return process


def _dynamic_shift(values: Values, tokens: int | None) -> float:
    if tokens is None:
        remedy = 'set it to false and "shift" to exp(mu) of the picture size you sample at'
        raise _refused("use_dynamic_shifting", values, "false", remedy)
    if values["base_image_seq_len"] == values["max_image_seq_len"]:
        raise _refused("max_image_seq_len", values, "another than base_image_seq_len", "correct the file")
    return resolution_shift(
        tokens,
        base_tokens=values["base_image_seq_len"],
        max_tokens=values["max_image_seq_len"],
        base_shift=values["base_shift"],
        max_shift=values["max_shift"],
        kind=values["time_shift_type"],
    )


def _sigmas(values: Values) -> Sigmas:
    kinds: tuple[Sigmas, ...] = ("karras", "exponential", "beta")
    asked = [kind for kind in kinds if values.get(f"use_{kind}_sigmas", False)]
    if len(asked) > 1:
        raise MmgenError(
            f"{FILE}: " + " and ".join(f"use_{kind}_sigmas" for kind in asked),
            got="true together",
            wanted="at most one",
            remedy="set the others to false",
        )
    return asked[0] if asked else "schedule"


def _either(choices: tuple[object, ...]) -> str:
    return " or ".join(json.dumps(choice) for choice in choices)
