"""Exports of one model in several ways, from one trace: what torch traces depends neither on policy nor on hoisting."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch.export import ExportedProgram

from mmgen.export import exporter
from mmgen.export.graphs.latent import Source
from mmgen.export.tracing.trace import trace

OURS = "mmgen.export.graphs."  # modules that each export makes anew, around the model's own


def remembering(folder: Path) -> Callable[[Source, Path], ExportedProgram]:
    """Return a ``trace`` that copies the files of its first trace of each part of a ``Model`` object.

    ``folder`` keeps them.  That a trace comes out the same every time is tested by ``test_registry``.
    """
    kept: dict[tuple[object, ...], tuple[Source, Path, ExportedProgram]] = {}

    def traced(source: Source, path: Path) -> ExportedProgram:
        parts = (module for module in source.module.modules() if not type(module).__module__.startswith(OURS))
        key = (source.role, *source.inputs, *map(id, parts))
        if key not in kept:
            file = folder / str(len(kept)) / path.name
            file.parent.mkdir(parents=True)
            kept[key] = source, file, trace(source, file)  # the source too, since others could get its parts' ids
        _, file, program = kept[key]
        shutil.copytree(file.parent, path.parent, dirs_exist_ok=True)
        return program

    return traced


@contextmanager
def traced_once(folder: Path) -> Iterator[None]:
    """Let exports trace each part of a ``Model`` object once, as long as the block lasts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "trace", remembering(folder))
        yield
