"""Options that several commands have: each is defined once, so that it means the same everywhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mmgen.runtime.backends.registry import NAMES
from mmgen.runtime.solvers.registry import SOLVERS

Decorated = Callable[..., Any]
Decorator = Callable[[Decorated], Decorated]

bundle_argument = click.argument("folder", metavar="BUNDLE", type=click.Path(path_type=Path))
backend_option = click.option("--backend", default="auto", show_default=True, metavar="NAME",
                              help=f"What runs the graphs: {', '.join(NAMES)}; or the first that works.")  # fmt: skip
key_option = click.option("--public-key", type=click.Path(path_type=Path), metavar="FILE",
                          help="Take only a bundle, and engines, that mmgen sign signed with its key.")  # fmt: skip
threads_option = click.option("--threads", type=int, help="Threads of a CPU backend; one a core unless given.")

want_option = click.option("--want", "output_name", metavar="NAME",
                           help="Which output of a bundle that has several; its default unless given.")  # fmt: skip


def _together(*options: Decorator) -> Decorator:
    """Make one decorator of several; help shows their options in this order."""

    def decorate(function: Decorated) -> Decorated:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


condition_options = _together(
    click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="Text to generate from; may be repeated."),
    click.option("--class-id", "class_ids", multiple=True, type=int, metavar="N", help="Class; may be repeated."),
    click.option("--condition", "others", multiple=True, metavar="NAME=VALUE",
                 help="Any condition, by name: text, a class, JSON numbers, a .npy file or another of a medium; may be "
                 "repeated.  --NAME VALUE is the same."),
)  # fmt: skip
sampling_options = _together(
    click.option("--steps", type=int, help="Denoising steps."),
    click.option("--guidance", type=float, help="How much the condition weighs; 1 is no guidance."),
    click.option("--guidance-interval", type=(float, float), metavar="LOW HIGH",
                 help="Ratios of noise to data; outside it there is no guidance, at half the cost."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the noise."),
    click.option("--solver", help=f"How the process is undone: {', '.join(SOLVERS)}; mmgen inspect shows the default."),
    click.option("--sigmas", help="Noise levels: schedule, karras, exponential or beta."),
)  # fmt: skip
SAMPLING = ("steps", "guidance", "guidance_interval", "seed", "solver", "sigmas")  # these, as fields of a request
