"""What a denoiser was trained to undo: the process, as explicit data.

Time directions, velocity signs and prediction types differ between model
families; nothing here is guessed from a name.
"""

from dataclasses import dataclass
from typing import Literal

Prediction = Literal["epsilon", "v", "sample"]
Spacing = Literal["leading", "linspace", "trailing"]
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]


@dataclass(frozen=True)
class Diffusion:
    """A variance-preserving diffusion: x_t = sqrt(a_t) x0 + sqrt(1 - a_t) noise, a_t the product of 1 - beta."""

    train_timesteps: int = 1000
    beta_schedule: BetaSchedule = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    betas: tuple[float, ...] | None = None  # explicit table; overrides the three fields above
    zero_terminal_snr: bool = False  # betas rescaled so that the last timestep is pure noise (Lin et al. 2023, alg. 1)
    prediction: Prediction = "epsilon"
    spacing: Spacing = "leading"  # which training timesteps a solver visits
    steps_offset: int = 0  # added to timesteps with leading spacing
    final_alpha_one: bool = True  # the last DDIM step goes to a = 1; False: to a of the first training timestep
    clip: float | None = None  # predicted x0 is clamped to [-clip, clip] by ddim, ddpm and heun; None: never
    kind: Literal["diffusion"] = "diffusion"


@dataclass(frozen=True)
class Flow:
    """A straight path between noise and data: x = (1 - s) data + s noise, s from 1 (noise) to 0 (data)."""

    noise_time: Literal[0, 1] = 1  # the time t at which x is pure noise; s = t if 1, s = 1 - t if 0
    velocity: Literal["noise-data", "data-noise"] = "noise-data"  # what the denoiser predicts
    timestep_scale: float = 1000.0  # the denoiser is conditioned on timestep_scale * t
    integer_timesteps: bool = False  # truncated to whole numbers first (GR00T)
    shift: float = 1.0  # s' = shift s / (1 + (shift - 1) s); schedules.resolution_shift knows FLUX's and its kin's
    terminal: float | None = None  # the last s, to which the shifted ones are stretched; None: they are left alone
    schedule: Literal["uniform", "diffusers", "dpm", "unipc"] = "uniform"
    # Before the shift, with T = train_timesteps.  uniform: s = 1 - i / N, as FLUX's and its kin's pipelines ask for.
    # diffusers: FlowMatchEulerDiscreteScheduler's own table, from 1 to 1 / T in N, the latter shifted in its
    # constructor and again with all the others.  dpm: DPMSolverMultistepScheduler's, s = (1 - 1 / T) (1 - i / N).
    # unipc: UniPCMultistepScheduler's, s = 1 - (1 - 1 / T) i / N.
    train_timesteps: int = 1000
    kind: Literal["flow"] = "flow"


@dataclass(frozen=True)
class EDM:
    """Noise that is added to data as it is: x = x0 + sigma noise (Karras et al. 2022), from sigma_max to sigma_min.

    Its noise is sigma_max wide at the start; the data isn't scaled.  With c_in = 1 / sqrt(sigma^2 + sigma_data^2), the
    denoiser returns, by ``prediction``,

        sample          x0 itself, and sees x; what preconditions it, if anything, is inside
        epsilon         the noise, and sees x: x0 = x - sigma out
        preconditioned  F of table 1, column EDM, and sees c_in x: x0 = c_skip x + c_out out
        v               the same with -c_out, as diffusers' v_prediction
        consistency     F of Song et al. 2023, appendix C, whose x0 is x at sigma_min, and sees c_in x
    """

    sigma_min: float = 0.002  # the least noise of training
    sigma_max: float = 80.0  # the most
    sigma_data: float = 0.5  # the data's standard deviation, where the denoiser sees c_in x
    prediction: Literal["sample", "epsilon", "preconditioned", "v", "consistency"] = "sample"
    conditioned_on: Literal["sigma", "log_sigma"] = "sigma"  # the denoiser, times ``timestep_scale``; natural logarithm
    timestep_scale: float = 1.0  # Karras et al. tell it 0.25 log sigma, consistency models 250 log sigma
    schedule: Literal["karras", "exponential"] = "karras"  # levels even in sigma^(1 / rho), or in log sigma
    rho: float = 7.0
    clip: float | None = None  # predicted x0 is clamped to [-clip, clip]; None: never
    kind: Literal["edm"] = "edm"


@dataclass(frozen=True)
class Masked:
    """Tokens that are masked one by one: a position holds one of the codes 0 to ``codes`` - 1, or the mask.

    The denoiser sees tokens (branch batch, *L) and returns logits (branch batch, codes, *L).  Time is the share that is
    masked; a denoiser conditioned on the timestep gets a whole number that says how much was masked in training.
    """

    codes: int  # entries of the codebook
    mask_id: int  # the token of a masked position; often ``codes``, the first number that isn't a code
    schedule: Literal["cosine", "linear"] = "cosine"  # share of masked positions over time, for maskgit and amused
    candidates: int = 256  # largest top-k that can be requested, except all codes; TensorRT sorts no more than 3840
    train_timesteps: int = 0  # the denoiser is conditioned on 0 to ``train_timesteps`` - 1; 0: on no timestep
    hidden: tuple[float, float] = (0.0, 1.0)  # share of masked positions at the first and last timestep; linear between
    kind: Literal["masked"] = "masked"


Process = Diffusion | Flow | EDM | Masked
