"""Conditions that are arrays are guided as others are, and may have any name."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from policy import EXAMPLES, HORIZON, JOINTS, NULL_IMAGE, NULL_MASK, Normalised, policy
from tiny_tokens import CLASSES, tiny_token_model
from tolerances import LIMITS
from torch import nn

from mmgen.export.base.model import Model
from mmgen.export.base.naming import named
from mmgen.export.exporter import export
from mmgen.runtime import MmgenError, Request, load
from mmgen.runtime.request.noise import noise
from mmgen.runtime.request.nulls import write_nulls
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.golden import read_golden
from mmgen.runtime.storage.schema import GOLDEN, MANIFEST, Bundle, Condition, Defaults
from mmgen.runtime.storage.tensors import TENSORS
from mmgen.runtime.verify import relative_rms

ASKED, OTHER = EXAMPLES
NOTHING = {"state": np.zeros(3, np.float32), "mask": NULL_MASK, "image": NULL_IMAGE}
Terms = list[tuple[float, dict[str, Any]]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The policy with nulls: a number, and two arrays."""
    return export(policy(), tmp_path_factory.mktemp("policy") / "a.mmgen", policy="fp32")


@pytest.fixture(scope="module")
def without_null(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(policy(null=False), tmp_path_factory.mktemp("policy") / "b.mmgen", policy="fp32")


def sampled(model: Model, terms: Terms, steps: int = 4) -> np.ndarray:
    """Euler's steps along the flow in torch, of a weighted sum of branches, from the noise of seed 0."""
    x = torch.from_numpy(noise(0, 1, (HORIZON, JOINTS)))
    for i in range(steps):
        parts = []
        for weight, conditions in terms:
            given = [torch.from_numpy(np.asarray(conditions[c.name]))[None] for c in model.conditions]
            conditioning = given if model.condition is None else model.condition(*given)
            parts.append(weight * model.denoiser(x, torch.tensor([1 - i / steps]), *conditioning))
        x = x - sum(parts) / steps
    return x.detach().numpy()


def close(got: np.ndarray, wanted: np.ndarray) -> bool:
    return relative_rms(got, wanted) < LIMITS["pipeline latents, fp32"]


# what stands for nothing


@pytest.mark.parametrize(
    ("request_", "terms"),
    [
        ({"conditions": ASKED}, [(1.0, ASKED)]),
        ({"conditions": ASKED, "guidance": 3.0}, [(3.0, ASKED), (-2.0, NOTHING)]),
        ({}, [(1.0, NOTHING)]),
        ({"state": [1, 2, 3]}, [(1.0, NOTHING | {"state": ASKED["state"]})]),
        (
            {"conditions": ASKED, "guidance": 3.0, "negative": {"state": [0.0, 2.0, -3.0]}},
            [(3.0, ASKED), (-2.0, NOTHING | {"state": OTHER["state"]})],
        ),
        (
            {"conditions": ASKED, "guidance": 2.0, "also": [({"image": OTHER["image"].tolist()}, 0.5)]},
            [(2.0, ASKED), (1.0, ASKED | {"image": OTHER["image"]}), (-2.0, NOTHING)],
        ),
    ],
    ids=["asked", "guided", "nothing", "one", "negative", "also"],
)
def test_guidance_goes_from_the_null_arrays(exported: Bundle, request_: dict[str, Any], terms: Terms) -> None:
    with load(exported.folder, "ort-cpu") as generator:
        assert close(generator.generate(**request_).latents, sampled(policy(), terms))


def test_nulls_are_numbers_in_the_manifest_or_files_of_the_bundle(exported: Bundle) -> None:
    records = json.loads((exported.folder / MANIFEST).read_text())["conditions"]
    assert [record["null"] for record in records] == [0.0, "nulls/1-mask.npy", "nulls/2-image.npy"]
    assert [record["null_sha256"] is None for record in records] == [True, False, False]
    assert np.array_equal(np.load(exported.folder / "nulls/2-image.npy"), NULL_IMAGE)
    assert read_bundle(exported.folder) == exported


def test_a_null_that_changed_is_refused(exported: Bundle, tmp_path: Path) -> None:
    shutil.copytree(exported.folder, tmp_path / "copy")
    np.save(tmp_path / "copy/nulls/2-image.npy", NULL_IMAGE[:1])
    with pytest.raises(MmgenError, match=r"2-image\.npy: sha256"):
        load(tmp_path / "copy", "ort-cpu")
    with pytest.raises(MmgenError, match=r"null of condition 'image', got float32 \(1, 5\), wanted .*float32 \(2, 5\)"):
        load(tmp_path / "copy", "ort-cpu", verify=False)


def test_an_array_of_one_number_is_that_number(tmp_path: Path) -> None:
    conditions = (
        Condition("state", "array", null=np.full(3, 0.1, np.float32), shape=(3,)),
        Condition("mask", "array", null=np.ones(HORIZON, bool), shape=(HORIZON,), dtype="int64"),
        Condition("image", "array", null=NULL_IMAGE, shape=NULL_IMAGE.shape),
    )
    written = write_nulls(conditions, tmp_path)
    assert [c.null for c in written] == [float(np.float32(0.1)), 1, "nulls/2-image.npy"]


def test_receipts_are_of_guided_runs(exported: Bundle) -> None:
    golden = read_golden(exported.folder / GOLDEN)
    assert (golden.guidance, golden.negative) == (2.0, {})
    terms: Terms = [(2.0, ASKED), (-1.0, NOTHING)]
    assert close(golden.trajectory[-1][:1], sampled(policy(), terms))


def test_engines_hold_branches_of_every_model_with_conditions(exported: Bundle, without_null: Bundle) -> None:
    ranges = [(b.axes["G"].opt, b.axes["G"].max, b.axes["R"].opt, b.axes["R"].max) for b in (exported, without_null)]
    assert ranges == [(2, 4, 2, 32), (1, 4, 1, 32)]
    for bundle in (exported, without_null):
        assert "guidance_rescale" in [spec.name for spec in bundle.graphs["step"].inputs]


# nothing that stands for nothing


def test_a_model_without_nulls_is_proven_with_what_is_not_wanted(without_null: Bundle) -> None:
    golden = read_golden(without_null.folder / GOLDEN)
    assert np.array_equal(golden.conditions["state"], np.stack([ASKED["state"], OTHER["state"]]))
    assert np.array_equal(golden.negative["state"], np.stack([OTHER["state"], ASKED["state"]]))
    terms: Terms = [(2.0, ASKED), (-1.0, OTHER)]
    assert close(golden.trajectory[-1][:1], sampled(policy(), terms))


def test_a_model_without_nulls_is_guided_by_what_is_not_wanted(without_null: Bundle) -> None:
    with load(without_null.folder, "ort-cpu") as generator:
        plain = generator.generate(conditions=ASKED).latents
        made = generator.generate(conditions=ASKED, negative={"state": OTHER["state"]}, guidance=3.0).latents
        rescaled = generator.generate(conditions=ASKED, negative=OTHER, guidance=3.0, guidance_rescale=0.7).latents
    assert close(plain, sampled(policy(), [(1.0, ASKED)]))
    assert close(made, sampled(policy(), [(3.0, ASKED), (-2.0, ASKED | {"state": OTHER["state"]})]))
    assert not close(rescaled, sampled(policy(), [(3.0, ASKED), (-2.0, OTHER)]))


def test_a_default_guidance_without_null_asks_for_what_is_not_wanted(tmp_path: Path) -> None:
    model = policy(null=False, defaults=Defaults("flow-euler", 4, guidance=3.0))
    bundle = export(model, tmp_path / "a.mmgen", policy="fp32")
    assert bundle.axes["G"].opt == 2
    with load(bundle.folder, "ort-cpu") as generator:
        made = generator.generate(conditions=ASKED, negative=OTHER).latents
        assert close(made, sampled(model, [(3.0, ASKED), (-2.0, OTHER)]))
        assert close(generator.generate(conditions=ASKED, guidance=1).latents, sampled(model, [(1.0, ASKED)]))
        words = "default guidance, got 3, wanted 1; .*say what isn't wanted with negative, or ask for guidance=1"
        with pytest.raises(MmgenError, match=words):
            generator.generate(conditions=ASKED)


def test_tokens_are_guided_by_what_is_not_wanted(tmp_path: Path) -> None:
    conditions = (Condition("label", "class", count=CLASSES + 1),)
    model = tiny_token_model(conditions=conditions, encoder=None, defaults=Defaults("maskgit", 6))
    bundle = export(model, tmp_path / "a.mmgen", policy="fp32")
    golden = read_golden(bundle.folder / GOLDEN)
    assert golden.guidance == 2.0 and golden.negative["label"] != golden.conditions["label"]
    with load(bundle.folder, "ort-cpu") as generator:
        one, other = (generator.generate(label=3, negative={"label": n}, guidance=4.0).codes for n in (1, 2))
    assert not np.array_equal(one, other)


# names


def test_names_of_graphs_are_kept_from_conditions() -> None:
    names = ("state", "noise", "mask", "half_fp16", "left hand", "left_hand")
    conditions = tuple(Condition(name, "array", shape=(1,)) for name in names)
    model = named(policy(conditions=conditions, conditioning=("mask", "x0", "context", "context")))
    assert [c.name for c in model.conditions] == list(names)
    tensors = [c.tensor for c in model.conditions]
    assert tensors == ["state_given", "noise_given", "mask", "half_fp16_given", "left_hand", "left_hand_given"]
    assert model.conditioning == ("mask_given", "x0_given", "context", "context_given")
    assert not TENSORS & {*tensors, *model.conditioning}


def test_a_condition_graph_may_hand_on_any_name(tmp_path: Path) -> None:
    """Names of the step's own inputs, and of conditions; in half precision."""
    model = policy(condition=Normalised(), conditioning=("state", "noise", "image"))
    bundle = export(model, tmp_path / "a.mmgen", policy="fp16")
    terms: Terms = [(3.0, ASKED), (-2.0, NOTHING)]
    with load(bundle.folder, "ort-cpu") as generator:
        made = generator.generate(conditions=ASKED, guidance=3.0).latents
    assert relative_rms(made, sampled(model, terms)) < LIMITS["pipeline latents, fp16"]


def test_what_torch_calls_the_tensors_inside_may_be_a_name(tmp_path: Path) -> None:
    """Of the denoiser, traced: its layers' outputs; and of what is hoisted out of the step."""

    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = policy().denoiser

        def forward(self, *given: torch.Tensor) -> torch.Tensor:
            return self.policy(*given)

    renamed = ("linear", "condition_invariants", "silu")
    conditions = tuple(
        dataclasses.replace(condition, name=name) for condition, name in zip(policy().conditions, renamed, strict=True)
    )
    examples = tuple(dict(zip(renamed, example.values(), strict=True)) for example in EXAMPLES)
    model = policy(denoiser=Renamed(), conditions=conditions, examples=examples)
    bundle = export(model, tmp_path / "a.mmgen", policy="fp32")
    with load(bundle.folder, "ort-cpu") as generator:
        assert close(generator.generate(conditions=examples[0]).latents, sampled(policy(), [(1.0, ASKED)]))


def test_options_and_conditions_of_one_name_are_told_apart(exported: Bundle) -> None:
    with load(exported.folder, "ort-cpu") as generator:
        one, other = (generator.generate(conditions={"image": each["image"]}) for each in (NOTHING, ASKED))
        assert not np.array_equal(one.latents, other.latents)
        goes = r"the condition of that name goes in conditions=\{'image': \.\.\.\}"
        with pytest.raises(MmgenError, match=f"image: this bundle has no encoder.*{goes}"):
            generator.generate(Request(image=NULL_IMAGE))
        with pytest.raises(MmgenError, match=f"mask, got int64 .6,., .*{goes.replace('image', 'mask')}"):
            generator.generate(Request(mask=NULL_MASK))
        named = generator.generate(state=ASKED["state"], mask=ASKED["mask"], image=ASKED["image"])
        assert np.array_equal(named.latents, generator.generate(conditions=ASKED).latents)
