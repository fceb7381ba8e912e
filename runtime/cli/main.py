"""``mmgen``: generate, inspect, verify, bench, doctor, and the commands that other packages add.

What only one command needs is imported by that command.
"""

import re
from pathlib import Path
from typing import Any

import click

from mmgen.runtime.backends.registry import check_backend
from mmgen.runtime.base import distribution
from mmgen.runtime.cli.arguments import also as read_also
from mmgen.runtime.cli.arguments import conditions as read_conditions
from mmgen.runtime.cli.arguments import negative as read_negative
from mmgen.runtime.cli.arguments import options as read_options
from mmgen.runtime.cli.bench import bench
from mmgen.runtime.cli.inputs import InputsCommand, named_inputs
from mmgen.runtime.cli.options import (
    backend_option,
    bundle_argument,
    condition_options,
    key_option,
    sampling_options,
    threads_option,
    want_option,
)
from mmgen.runtime.cli.retrieval import embed, search
from mmgen.runtime.cli.save import Samples, destination
from mmgen.runtime.cli.terminal import Command, Progress, json_option, show
from mmgen.runtime.files.json_records import plain as plain_json
from mmgen.runtime.files.json_records import to_json
from mmgen.runtime.generator import load
from mmgen.runtime.loop.results import Result
from mmgen.runtime.media.arrays import read_array
from mmgen.runtime.media.pictures import read_mask
from mmgen.runtime.media.read import read_media
from mmgen.runtime.request.request import Request
from mmgen.runtime.solvers.options import over_defaults
from mmgen.runtime.storage.bundle import output_of, outputs_of, read_bundle
from mmgen.runtime.storage.schema import Bundle

ADDED = "mmgen.commands"  # entry points of further commands; read when one is asked for or help is
DELIVERED = ("steps_asked", "steps", "evaluations", "evaluations_run", "complete")


class Commands(click.Group):
    """The commands here and those that installed packages add."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        import importlib.metadata

        return sorted({*super().list_commands(ctx), *importlib.metadata.entry_points(group=ADDED).names})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if built_in := super().get_command(ctx, name):
            return built_in
        import importlib.metadata

        for entry in importlib.metadata.entry_points(group=ADDED, name=name):
            command: click.Command = entry.load()
            return command
        return None


@click.group("mmgen", cls=Commands)
@click.version_option(package_name=distribution.NAME)
def main() -> None:
    """Generate media from a bundle, with no torch on board."""


for command in (bench, embed, search):
    main.add_command(command)


@main.command(cls=InputsCommand)
@bundle_argument
@want_option
@condition_options
@click.option("--negative-prompt", "negative_prompts", multiple=True, metavar="TEXT",
              help="Text to guide away from: one, or one for each prompt.")  # fmt: skip
@click.option("--negative", "negatives", multiple=True, metavar="NAME=VALUE",
              help="Any condition to guide away from, by name; may be repeated.")  # fmt: skip
@click.option("--also", "also_arguments", multiple=True, metavar="[NAME=]VALUE[:WEIGHT]",
              help="More to ask for at the same time; below 0 it is kept away; may be repeated.")  # fmt: skip
@sampling_options
@click.option("--guidance-rescale", type=float, default=0.0, show_default=True,
              help="Share of the contrast that guidance adds to take back, 0 to 1.")  # fmt: skip
@click.option("--image", type=click.Path(path_type=Path), metavar="FILE",
              help="Start from media of the bundle's size: a picture, film, sound, a series, or .npy.")  # fmt: skip
@click.option("--resize", is_flag=True,
              help="Change a picture, film or sound of another size, rate or length to what the "
              "bundle takes.")  # fmt: skip
@click.option("--latents", type=click.Path(path_type=Path), metavar="FILE.npy",
              help="Start from latents; of a bundle that makes tokens, from codes.")  # fmt: skip
@click.option("--mask", type=click.Path(path_type=Path), metavar="FILE",
              help="With --image or --latents: what to regenerate, the rest is kept; white in a picture, true in a "
              ".npy file, of the picture's size or the latents'; what is transparent is kept.")  # fmt: skip
@click.option("--strength", type=float,
              help="With --image or --latents: share of the steps to make; 0.8, or 1 with --mask.")  # fmt: skip
@click.option("--deadline", type=float, metavar="SECONDS",
              help="Fewer steps if the device needs longer for all; ends early rather than late.")  # fmt: skip
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE",
              help="Option of the solver; may be repeated; mmgen inspect lists solvers with theirs.")  # fmt: skip
@click.option("--count", type=int, default=1, show_default=True, help="Samples of each prompt or class.")
@click.option("-o", "--output", metavar="OUT",
              help="OUT.png, .jpg, .webp: the picture, or a sheet of all; with --count a row for each prompt or class. "
              "OUT.gif, .webp, .mp4: film. OUT.wav, .flac: sound. OUT.csv: a series. OUT.txt: text. "
              "OUT.npy: the array. OUT/: a file for each sample.")  # fmt: skip
@backend_option
@threads_option
@key_option
@json_option
def generate(
    folder: Path,
    output_name: str | None,
    prompts: tuple[str, ...],
    class_ids: tuple[int, ...],
    others: tuple[str, ...],
    negative_prompts: tuple[str, ...],
    negatives: tuple[str, ...],
    also_arguments: tuple[str, ...],
    options: tuple[str, ...],
    image: Path | None,
    latents: Path | None,
    mask: Path | None,
    resize: bool,
    output: str | None,
    backend: str,
    threads: int | None,
    public_key: Path | None,
    as_json: bool,
    **plain: Any,
) -> None:
    """Make samples and write them to OUT; text is printed unless there is an OUT.

    Options that are left out take the bundle's defaults; mmgen inspect shows them, and the bundle's inputs, which are
    options, too: --NAME VALUE, of a medium the name of a file.  An input called image, latents or mask is meant by the
    option of that name.
    """
    with Progress() as progress:
        progress(f"loading {folder}", 0.0)
        with load(folder, backend, threads=threads, public_key=public_key, output=output_name) as generator:
            bundle = generator.bundle
            files_given = {"image": image, "latents": latents, "mask": mask}
            others = (*others, *named_inputs(bundle, files_given))
            image, latents, mask = files_given.values()
            if output is None and bundle.media.kind != "text":
                raise click.MissingParameter(param_type="option", param_hint="'-o' / '--output'")
            conditions = read_conditions(bundle, prompts, class_ids, others)
            request = Request(
                conditions=conditions,
                negative=read_negative(bundle, negative_prompts, negatives),
                also=read_also(bundle, also_arguments),
                options=read_options(bundle, plain["solver"], options),
                image=None if image is None else read_media(image, bundle.media, fit=resize),
                latents=None if latents is None else read_array(latents),
                mask=None if mask is None else read_mask(mask),
                resize=resize,
                **plain,
            )
            states = generator.stream(request)
            asked = max((len(values) for values in conditions.values()), default=1)
            with destination(output, bundle.media, plain["count"] * asked) as save:
                for state in states:
                    progress("denoising", state.evaluation / state.evaluations)
                    if state.last:
                        progress("decoding", 1.0)
                        result = state.result()
                told = _told(bundle, request, {name: str(file) for name, file in files_given.items() if file})
                columns = plain["count"] if 1 < plain["count"] < len(result.media) else None
                made = result.media if result.texts is None or Path(output or "").suffix == ".npy" else result.texts
                files = save(Samples(made, _labels(conditions, len(made)), told, columns))
    record = {
        "files": [str(file) for file in files],
        "media": {**to_json(bundle.media), "shape": result.media.shape},
        "backend": generator.backend,
        "request": told,
        **({} if result.texts is None else {"texts": list(result.texts)}),
        "delivered": {name: getattr(result, name) for name in DELIVERED},
        "timings": {**vars(result.timings), "total": result.timings.total, "jitter": result.timings.jitter},
    }
    alone = result.texts if output is None else None  # for a program that reads them, without anything else
    show(record, as_json, lambda: "\n".join(alone) if alone else _said(files, result, generator.backend))


@main.command()
@bundle_argument
@key_option
@click.option("--trtexec", "as_trtexec", is_flag=True,
              help="Print in its place a command of NVIDIA's trtexec for each graph, with the shapes that mmgen build "
              "gives its engines.")  # fmt: skip
@want_option
@json_option
def inspect(
    folder: Path, public_key: Path | None, as_trtexec: bool, output_name: str | None, as_json: bool
) -> None:
    """Check a bundle's files and say what it is."""
    from mmgen.runtime.cli import describe, trtexec

    bundle = output_of(read_bundle(folder, public_key=public_key), output_name)
    if as_trtexec:
        commands = trtexec.commands(bundle)
        show({"trtexec": commands}, as_json, lambda: trtexec.text(commands))
        return
    several = output_name is None and len(bundle.outputs) > 1
    tell = describe.text_of_all if several else describe.text
    show(describe.record(bundle), as_json, lambda: tell(bundle))


@main.command()
@bundle_argument
@backend_option
@threads_option
@want_option
@json_option
def verify(folder: Path, backend: str, threads: int | None, output_name: str | None, as_json: bool) -> None:
    """Repeat on this device the comparisons with torch that need no torch; show them all, also those that fail.

    Of a bundle that has several outputs, all are compared unless --want names one.
    """
    from mmgen.runtime.cli import describe
    from mmgen.runtime.verify import repeat, require

    check_backend(backend, threads)  # before the slow part
    with Progress() as progress:
        progress(f"verifying {folder}", 0.0)
        bundle = read_bundle(folder)
        outputs = [output_of(bundle, output_name)] if output_name else list(outputs_of(bundle).values())
        found = {}
        for i, output in enumerate(outputs):
            progress(f"verifying {folder}{f': {output.output}' if len(outputs) > 1 else ''}", i / len(outputs))
            found[output.output] = repeat(output, backend, threads=threads)
    several = {
        name: [plain_json({**vars(receipt), "passed": receipt.passed}) for receipt in receipts]
        for name, receipts in found.items()
    }
    record = {"outputs": several} if len(outputs) > 1 else {"receipts": several[outputs[0].output]}
    show(record, as_json, lambda: describe.receipts_of_all(found))
    for receipts in found.values():
        require(receipts)


@main.command()
@bundle_argument
@click.option("--key", required=True, type=click.Path(path_type=Path), metavar="FILE",
              help="Private key, as ssh-keygen -t ed25519 makes it.")  # fmt: skip
@json_option
def sign(folder: Path, key: Path, as_json: bool) -> None:
    """Sign a bundle and the engines that it has, for those who load it with --public-key."""
    from mmgen.runtime.builds.signed_bundle import sign_bundle

    signed = sign_bundle(folder, key, lambda: click.prompt(f"Passphrase of {key}", hide_input=True, err=True))
    show({"signatures": [str(path) for path in signed]}, as_json, lambda: "\n".join(map(str, signed)))


@main.command()
@click.argument("folder", metavar="[BUNDLE]", required=False, type=click.Path(path_type=Path))
@json_option
def doctor(folder: Path | None, as_json: bool) -> None:
    """Say what this machine is and which backends work on it; for a BUNDLE, which one auto takes."""
    from mmgen.runtime.cli import doctor as machine

    found = machine.record(None if folder is None else read_bundle(folder))
    show(found, as_json, lambda: machine.text(found))


def _told(bundle: Bundle, request: Request, files: dict[str, str]) -> dict[str, Any]:
    """Return the request as JSON can hold it, with the bundle's defaults where it was silent; without what is off."""
    defaults = {"steps", "guidance", "solver", "sigmas"}
    full = {key: getattr(bundle.defaults, key) if key in defaults and value is None else value
            for key, value in {**vars(request), "image": None, "latents": None, "mask": None, **files}.items()
            if key in {*defaults, "seed", "count", "conditions"} or value}  # fmt: skip
    if request.sigmas is None and full["solver"] != bundle.defaults.solver:
        full["sigmas"] = "schedule"  # the default sigmas belong to the default solver
    if own := over_defaults(bundle.defaults, request.solver, request.options):
        full["options"] = own
    told: dict[str, Any] = plain_json(full)
    return told


def _labels(conditions: dict[str, list[Any]], count: int) -> tuple[str, ...]:
    """For each sample its text and classes, as a file name may hold them."""
    words = [values for values in conditions.values() if all(isinstance(v, (str, int)) for v in values)]
    each = [" ".join(str(values[i * len(values) // count]) for values in words) for i in range(count)]
    return tuple(re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:40] for label in each)


def _said(files: list[Path], result: Result, backend: str) -> str:
    """Return the files, one a line, and where the time went."""
    timings = result.timings
    times = (
        f"{backend}: condition {timings.condition:.3f} s, timesteps {timings.timestep:.3f} s, "
        f"{len(timings.steps)} steps {timings.loop:.3f} s, "
        f"decode {timings.decode:.3f} s, {timings.total:.3f} s in all; samples: {len(result.media)}"
    )
    if not result.complete:
        steps = f"{result.steps} steps of the {result.steps_asked} asked for"
        run = f"{result.evaluations_run} of {result.evaluations} evaluations run"
        times += f"\nthe deadline left time for {steps}, {run}"
    return "\n".join([*map(str, files), times])
