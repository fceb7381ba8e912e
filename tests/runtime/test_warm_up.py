"""``Generator.warm_up``: what the first request of a size would do beside its own work is done before it.

Where a loop is recorded as one, that is done then too; see test_play.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from counting import Counting
from manifests import edit

from mmgen.runtime import Generator, MmgenError, Request, load
from mmgen.runtime.backends.protocol import Block
from mmgen.runtime.request.example import example
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.schema import Condition


class Laying(Counting):
    """Counts what is laid out, too."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = 0

    def block(self, host_bytes: int, other_bytes: int) -> Block:
        self.blocks += 1
        return super().block(host_bytes, other_bytes)


def test_memory_is_laid_out_and_each_graph_runs(bundle_folder: Path) -> None:
    backend = Laying()
    with Generator(read_bundle(bundle_folder), backend) as generator:
        generator.warm_up(batch=2, steps=3)
        assert backend.blocks == 1
        assert backend.calls == {"condition": 1, "timestep": 1, "step": 3, "decode": 1}
        warm = generator.generate(prompt="red apple", count=2, steps=3, seed=5)
        assert backend.blocks == 1, "the first request finds its memory"
    with load(bundle_folder, "ort-cpu", threads=1) as cold:
        assert np.array_equal(warm.latents, cold.generate(prompt="red apple", count=2, steps=3, seed=5).latents)


def test_the_bundle_s_defaults_are_the_size_unless_another_is_given(bundle_folder: Path) -> None:
    backend = Laying()
    with Generator(read_bundle(bundle_folder), backend) as generator:
        generator.warm_up()
        assert backend.calls["step"] == generator.bundle.defaults.steps
        generator.generate(prompt="red")
        assert backend.blocks == 1
        generator.generate(prompt="red", count=2)
        assert backend.blocks == 2, "another size is another layout"


def test_on_each_cpu_backend(bundle_folder: Path, cpu: str) -> None:
    with load(bundle_folder, cpu) as generator:
        generator.warm_up(2, 2)
        assert generator.generate(prompt=["red", "blue"], steps=2).media.std() > 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch": 0}, "batch, got 0, wanted a whole number, at least 1"),
        ({"batch": 1.0}, r"batch, got 1\.0, wanted a whole number"),
        ({"batch": True}, "batch, got True, wanted a whole number"),
        ({"batch": 1 << 40}, "batch, got 1099511627776, wanted at most"),
        ({"steps": 0}, "steps, got 0"),
    ],
)
def test_a_size_that_none_could_be_is_one_line(bundle_folder: Path, arguments: dict[str, int], words: str) -> None:
    with load(bundle_folder, "ort-cpu", threads=1) as generator:
        with pytest.raises(MmgenError, match=words):
            generator.warm_up(**arguments)
        generator.close()
        with pytest.raises(MmgenError, match="closed"):
            generator.warm_up()


# What it asks for


def test_what_the_golden_asked_for_is_asked_for_once(bundle_folder: Path) -> None:
    asked = example(read_bundle(bundle_folder))
    assert set(asked.conditions) == {"prompt", "label"} and asked.negative == {}
    assert all(len(values) == 1 for values in asked.conditions.values())


def test_without_a_golden_nothing_in_particular_is_asked_for(bundle_copy: Path) -> None:
    (bundle_copy / "golden.npz").unlink()
    edit(bundle_copy, lambda record: record.update(golden_sha256=None))
    bundle = read_bundle(bundle_copy)
    assert example(bundle) == Request(conditions={}, negative={}), "all conditions have a null"
    with load(bundle_copy, "ort-cpu", threads=1) as generator:
        generator.warm_up(steps=1)


def test_conditions_that_must_be_there_are_made_up_without_a_golden(bundle_folder: Path) -> None:
    conditions = (
        Condition("words", "text", length=4), Condition("kind", "class", count=3),
        Condition("pose", "array", shape=(2, 3), dtype="float64"),
    )  # fmt: skip
    bundle = dataclasses.replace(read_bundle(bundle_folder), conditions=conditions, golden_sha256=None)
    assert bundle.defaults.guidance != 1
    asked = example(bundle)
    assert asked.conditions == asked.negative, "guidance needs something to go away from"
    (words,), (kind,), (pose,) = (asked.conditions[name] for name in ("words", "kind", "pose"))
    assert (words, kind) == ("", 0)
    assert pose.shape == (2, 3) and pose.dtype == np.float64 and not pose.any()
    unguided = dataclasses.replace(bundle, defaults=dataclasses.replace(bundle.defaults, guidance=1.0))
    assert example(unguided).negative == {}
