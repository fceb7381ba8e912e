"""Models of several outputs, or with media as inputs, whose parts don't fit: one error before anything is written."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from four_outputs import Patches, four_outputs
from listener import Heard, listener
from torch import nn

from mmgen.export import Condition, Flow, Media, MmgenError, Model, export

Change = Callable[[Model], Model]


class Fails(nn.Module):
    def forward(self, x: object) -> object:
        raise RuntimeError("no such layer")


def four(**changes: object) -> Change:
    return lambda model: dataclasses.replace(four_outputs(), **changes)  # type: ignore[arg-type]


def hearing(**changes: object) -> Change:
    return lambda model: dataclasses.replace(listener(), **changes)  # type: ignore[arg-type]


def output(name: str, **changes: object) -> Change:
    def change(model: Model) -> Model:
        outputs = dict(model.outputs)
        outputs[name] = dataclasses.replace(outputs[name], **changes)  # type: ignore[arg-type]
        return dataclasses.replace(model, outputs=outputs)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (four(process=Flow()), "model four has outputs, and also a process or conditions of its own"),
        (lambda m: dataclasses.replace(m, outputs={"a/b": m.outputs["motion"]}), "outputs: name, got 'a/b'"),
        (output("motion", inputs=("imag",)), "output 'motion': inputs, got 'imag', .*did you mean 'image'"),
        (four(encoders={"picture": Patches()}), "encoders: 'picture' is no input of any output"),
        (four(embeds={"smell": Patches()}), "embeds: 'smell' is no input of any output"),
        (four(encoders={"text": Patches()}), "encoders: name, got 'text', wanted an input of a medium"),
        (four(tokenizer=None), "tokenizer"),
        (output("sound", decoder=None), "has no decoder"),
        (output("motion", media=Media("series", (8, 2), "float32", labels=("x",))), "media: labels, got .'x'"),
        (output("sound", media=Media("audio", (64,), "float32")), "media of kind audio, got float32 .64,."),
        (output("motion", media=Media("video", (8, 2), "uint8")), "media of kind video, got uint8 .8, 2."),
        (hearing(encoders={"heard": Fails()}), "encoder of 'heard' fails on media .*no such layer"),
        (hearing(encoders={"heard": nn.Flatten(0)}), "encoder of 'heard': what it returns"),
        (hearing(conditions=(Condition("heard", "audio"),), encoders={"heard": Heard()}), "'heard': media, got None"),
        (hearing(examples=({"heard": np.zeros((10, 1), np.float32)},)), "examples: 'heard', got float32 .10, 1."),
        (hearing(examples=({"seen": "cat.mp4"},)), "examples: 'seen', got str"),
        (hearing(process=None), "model listener has no process"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_it_is_one_error(change: Change, message: str, tmp_path: Path) -> None:
    with pytest.raises(MmgenError, match=message) as caught:
        export(change(four_outputs()), tmp_path / "a.mmgen", policy="fp32")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
