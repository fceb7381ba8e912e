"""Options that several commands have: each is defined once, so that it means the same everywhere."""

from pathlib import Path

import click

from mmgen.runtime.backends.registry import NAMES
from mmgen.runtime.solvers.registry import SOLVERS

bundle_argument = click.argument("folder", metavar="BUNDLE", type=click.Path(path_type=Path))
backend_option = click.option("--backend", default="auto", show_default=True, metavar="NAME",
                              help=f"What runs the graphs: {', '.join(NAMES)}; or the first that works.")  # fmt: skip
key_option = click.option("--public-key", type=click.Path(path_type=Path), metavar="FILE",
                          help="Take only a bundle, and engines, that mmgen sign signed with its key.")  # fmt: skip
threads_option = click.option("--threads", type=int, help="Threads of a CPU backend; one a core unless given.")

# What a request says.
prompt_option = click.option("--prompt", "prompts", multiple=True, metavar="TEXT",
                             help="Text to generate from; may be repeated.")  # fmt: skip
class_option = click.option("--class-id", "class_ids", multiple=True, type=int, metavar="N",
                            help="Class; may be repeated.")  # fmt: skip
condition_option = click.option("--condition", "others", multiple=True, metavar="NAME=VALUE",
                                help="Any condition, by name: text, a class, JSON numbers or a .npy file; may be "
                                "repeated.")  # fmt: skip
steps_option = click.option("--steps", type=int, help="Denoising steps.")
guidance_option = click.option("--guidance", type=float, help="How much the condition weighs; 1 is no guidance.")
interval_option = click.option("--guidance-interval", type=(float, float), metavar="LOW HIGH",
                               help="Ratios of noise to data; outside it there is no guidance, at half the "
                               "cost.")  # fmt: skip
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Of the noise.")
solver_option = click.option("--solver", help=f"How the process is undone: {', '.join(SOLVERS)}; mmgen inspect shows "
                             "the default.")  # fmt: skip
sigmas_option = click.option("--sigmas", help="Noise levels: schedule, karras, exponential or beta.")
