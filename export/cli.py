"""``mmgen-export``, also ``mmgen export``.  Torch is imported when an export starts, so that help needs none."""

import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import click

from mmgen.export.base import embedded
from mmgen.runtime.backends.ort.importing import import_onnxruntime
from mmgen.runtime.base.distribution import extra
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.cli import describe
from mmgen.runtime.cli.terminal import Command, Progress, json_option, show

ENGINES = "mmgen.engines"  # entry point of the function that builds engines; exporting imports no compiler
EMBEDDED = embedded.names()
CPU = "cpu"  # the target that has no engines
NEEDED = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "safetensors")  # of the extra "export"


@click.command("export", cls=Command)
@click.argument("source", required=False)
@click.option("--model", "name", type=click.Choice(EMBEDDED) if EMBEDDED else str,
              help=f"The embedded model to export, in place of SOURCE; else {embedded.DEFAULT}.")  # fmt: skip
@click.option("--describe", "description", type=click.Path(path_type=Path), metavar="FILE.toml",
              help="Of an ONNX file: what it is for, which no graph says; docs/exporting.md shows one.")  # fmt: skip
@click.option("--variant", metavar="NAME",
              help="Which weights of a diffusers folder to read, such as fp16; else those of no variant.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT", help="The bundle; else NAME.mmgen.")
@click.option("--fp16", "policy", flag_value="fp16", help="Half precision, float32 only where measured ranges need it.")
@click.option("--fp32", "policy", flag_value="fp32", default="fp32", help="Single precision (the default).")
@click.option("--target", "targets", multiple=True, metavar="host|smXX|cpu",
              help="What to build engines for, as in mmgen build; may be repeated. "
              "With --fp16, what this machine can build unless given. "
              "cpu: a bundle for CPUs alone, which may use operators that TensorRT doesn't have; "
              "its graphs are optimised for this processor.")  # fmt: skip
@click.option("--no-engines", is_flag=True, help="Build no engines; with --target cpu, optimise no graphs.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, metavar="N",
              help="Outputs of a model with several to export at once, each in a process that takes the memory of an "
              "export; one after the other unless given.")  # fmt: skip
@click.option("--no-islands", is_flag=True, hidden=True, help="Half precision whatever the ranges, for diagnosis.")
@click.option("--no-hoist", is_flag=True, help="Leave in the step graph what is the same at every step, to compare.")
@json_option
def main(
    source: str | None,
    name: str | None,
    variant: str | None,
    description: Path | None,
    output: Path | None,
    policy: Literal["fp16", "fp32"],
    targets: tuple[str, ...],
    no_engines: bool,
    jobs: int,
    no_islands: bool,
    no_hoist: bool,
    as_json: bool,
) -> None:
    """Turn a trained model into a bundle, validated against torch.

    SOURCE is a diffusers folder, an mmgen checkpoint folder, an ONNX file with --describe, or module:function or
    file.py:function that returns an mmgen.export.Model.  Without it, an embedded model is exported: --model says which.

    An fp16 bundle gets TensorRT engines where there is a compiler: TensorRT for RTX needs no GPU.
    """
    if source and name:
        raise click.UsageError("SOURCE and --model exclude each other")
    cpu_only = CPU in targets
    if cpu_only and set(targets) != {CPU}:
        raise click.UsageError("--target cpu goes with no other target: what it makes is for CPUs alone")
    if targets and no_engines and not cpu_only:
        raise click.UsageError("--target and --no-engines exclude each other")
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise MmgenError(f"exporting needs {', '.join(missing)}", remedy=extra("export"))
    import_onnxruntime()  # before a model of the user's own does, and reports it
    from mmgen.export.base.leftovers import nothing_left
    from mmgen.export.exporter import export
    from mmgen.export.processes import Jobs
    from mmgen.export.sources import resolve

    finish = _engines(targets) if not no_engines and (targets or policy == "fp16") else None
    failed: MmgenError | None = None
    engines = ""
    with nothing_left(), Progress() as progress:
        progress("reading the model", 0.0)
        read = partial(
            resolve, str(embedded.folder(name)) if name else source, variant=variant, description=description
        )
        model = read()
        out = output or Path(f"{model.name}.mmgen")
        bundle = export(
            model,
            out,
            policy=policy,
            islands=not no_islands,
            hoist=not no_hoist,
            cpu_only=cpu_only,
            jobs=Jobs(jobs, read),
            progress=progress,
        )
        del model
        if finish:
            try:
                engines = finish(bundle.folder, progress)
            except MmgenError as error:
                failed = error
    record = {"bundle": str(bundle.folder), **describe.record(bundle)}
    text = f"{bundle.folder}\n{describe.summary(bundle)}"
    show(record, as_json, lambda: f"{text}\n\n{engines}" if engines else text)
    if failed:
        step = "optimising its graphs" if cpu_only else "building its engines"
        what = f"{bundle.folder} is complete, but {step} failed: {failed.what}"
        raise MmgenError(what, got=failed.got, wanted=failed.wanted, remedy=failed.remedy) from failed


def _engines(targets: Sequence[str]) -> Callable[[Path, Progress], str]:
    """Return a function that builds engines for targets, or for what this machine can build, and reports on them."""
    for entry in importlib.metadata.entry_points(group=ENGINES, name="build"):
        prepare: Callable[[Sequence[str]], Callable[[Path, Progress], str]] = entry.load()
        return prepare(targets)
    raise MmgenError("no engine builder is installed", remedy="install mmgen-dit again, or export with --no-engines")
