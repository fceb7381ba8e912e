"""A bundle with engines, built and played on the stand-in GPU by the package's own builder and backend."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import api
import numpy as np
import pytest
import standin_tensorrt
from standin_cuda import Cuda
from standin_device import Gpu
from standin_objects import Library

from mmgen.engines import builder, targets, worker
from mmgen.runtime.builds.engine_build import Build
from mmgen.runtime.storage.bundle import read_bundle

FLAVOURS = {release: "tensorrt-rtx" if release == api.RTX else "tensorrt" for release in api.VERSIONS}
OLDEST = "10.3.0"
DESKTOP = Gpu("RTX 4090", (8, 9), 128, 24 << 30, 12080, integrated=False)

ASKED: dict[str, Any] = {"prompt": ["red apple", "blue cat"], "seed": 3, "steps": 3}

each_flavour = pytest.mark.parametrize("release", [OLDEST, api.RTX])
rtx = pytest.mark.parametrize("release", [api.RTX])


class Machine:
    """A GPU with one release of TensorRT, in the place of the real modules."""

    def __init__(self, release: str, patch: pytest.MonkeyPatch, gpu: Gpu | None = None) -> None:
        self.release, self.flavour = release, FLAVOURS[release]
        self.cuda = Cuda(gpu or (DESKTOP if self.flavour == "tensorrt-rtx" else Gpu()))
        self.cuda.install(patch)
        self.library: Library = standin_tensorrt.tensorrt(release, self.cuda)
        standin_tensorrt.install(self.library, patch)
        patch.setattr(builder, "compile_apart", _compile_here)

    def build(self, bundle: Path, **options: Any) -> tuple[Path, Build]:
        """Engines for this machine, made by this process and not by one apart."""
        folder, build, _ = builder.build(read_bundle(bundle), targets.parse(["host"]), **options)
        return folder, build

    def live(self) -> dict[str, int]:
        """Everything that isn't freed."""
        return self.cuda.live() | self.library.live()


def _compile_here(job: Any, report: Callable[[float], None], **_: Any) -> Any:
    return worker._compile(job, lambda message: report(message["fraction"]) if "fraction" in message else None)  # type: ignore[index,operator]


def copied(bundle: Path, to: Path) -> Path:
    """A bundle to write engines into."""
    shutil.copytree(bundle, to)
    return to


def builds(bundle: Path, folders: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Copies of a bundle with engines of a release, made when they are first asked for."""

    @functools.cache
    def make(release: str) -> Path:
        folder = copied(bundle, folders.mktemp("built") / "test.mmgen")
        with pytest.MonkeyPatch.context() as patch:
            Machine(release, patch).build(folder)
        return folder

    return make


def same(ours: Any, theirs: Any) -> None:
    """Two results, to the bit."""
    np.testing.assert_array_equal(ours.latents, theirs.latents)
    np.testing.assert_array_equal(ours.media, theirs.media)
    np.testing.assert_array_equal(ours.codes, theirs.codes)
