"""The any-to-any network: shapes, absent inputs, and what is given not knowing what is made."""

from dataclasses import replace

import pytest
import torch
from tolerances import LIMITS

from mmgen.export.networks.any_to_any import (
    GIVEN,
    AnyToAny,
    AnyToAnyConfig,
    CodesConfig,
    CodesOutput,
    Embed,
    Given,
    Made,
    Sense,
)
from mmgen.export.networks.memory import Memory
from mmgen.export.networks.prefix import PrefixTransformer

OUTPUTS = {
    "text": CodesConfig((5, 1), (1, 1), 50),
    "picture": CodesConfig((4, 6), (2, 2), 20, recalls="look", parts=6),
    "sound": CodesConfig((6, 4), (1, 4), 30, recalls="look"),
}
MEDIA = {"picture": (3, 64, 64), "film": (8, 3, 64, 64), "sound": (51_200,), "series": (64, 2)}


@pytest.fixture(scope="module")
def network() -> AnyToAny:
    torch.manual_seed(0)
    sizes = {"width": 32, "layers": 2, "heads": 2, "vocabulary": 50, "things": 3, "memory": {"look": 24}}
    config = replace(AnyToAnyConfig(), **sizes, outputs=OUTPUTS)
    return AnyToAny(config).eval().requires_grad_(False)


def features(network: AnyToAny, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    media = {n: torch.rand(2, *MEDIA[n], generator=random) - 0.5 for n in names if n != "text"}
    given = {n: Sense(network, n)(medium) for n, medium in media.items()}
    return ({"text": torch.randint(1, 50, (2, 7), generator=random)} if "text" in names else {}) | given


@pytest.mark.parametrize("name", MEDIA)
def test_a_medium_becomes_as_many_vectors_as_it_has_places(network: AnyToAny, name: str) -> None:
    seen = features(network, (name,))[name]
    assert seen.shape == (2, GIVEN[name], 32)
    assert (seen.abs().amax(2) > 0).all(), "a vector of zeros would be absent"


@pytest.mark.parametrize("output", OUTPUTS)
def test_logits_have_the_shape_of_codes(network: AnyToAny, output: str) -> None:
    config = OUTPUTS[output]
    prefix = Given(network, ("text", "picture"))(*features(network, ("text", "picture")).values())
    assert [part.shape for part in prefix] == [(2, 2, 2, 1 + 7 + 16, 32), (2, 1 + 7 + 16), (2, 128)]
    codes = torch.full((2, *config.shape), config.codes)  # all masked
    assert Made(network, output)(codes, *prefix).shape == (2, config.codes, *config.shape)


def test_a_patch_of_codes_is_a_place(network: AnyToAny) -> None:
    """Another code changes the place of its patch, and no other one."""
    codes = torch.zeros(1, 4, 6, dtype=torch.int64)
    other = codes.clone()
    other[0, 3, 2] = 7  # in the lower middle patch, place 1 * 3 + 1
    part = network.outputs["picture"]
    changed = (part.places(codes) != part.places(other)).any(2)[0]
    assert changed.tolist() == [False, False, False, False, True, False]


def test_patches_come_back_as_they_went_in(network: AnyToAny) -> None:
    """Logits of a place land where its patch was taken from."""
    part = network.outputs["picture"]
    places = torch.zeros(1, 6, 32)
    other = places.clone()
    other[0, 4] = torch.randn(32, generator=torch.Generator().manual_seed(0))
    changed = (part.logits(places) != part.logits(other)).any(1)[0]
    want = torch.zeros(4, 6, dtype=torch.bool)
    want[2:, 2:4] = True
    assert torch.equal(changed, want)


def test_what_is_given_does_not_see_what_is_made() -> None:
    """One pass over both, with the rule written as a mask, is the two passes: so keys and values can be kept."""
    torch.manual_seed(0)
    trunk = PrefixTransformer(width=32, layers=3, heads=2, mlp_ratio=2, modulated_by=8).eval()
    for block in trunk.blocks:
        torch.nn.init.normal_(block.modulation.weight, std=0.3)
    given, made, vector = torch.randn(2, 5, 32), torch.randn(2, 4, 32), torch.randn(2, 8)
    bias = torch.zeros(2, 5)
    bias[1, 3:] = -1e4
    with torch.no_grad():
        last, keys_values = trunk.given(given, bias)
        got = trunk.made(made, keys_values, bias, vector)
        rule = torch.zeros(2, 1, 9, 9)
        rule[:, :, :5, 5:] = -torch.inf
        rule[:, :, :, :5] += bias[:, None, None]
        x = torch.cat([given, made], 1)
        for block in trunk.blocks:
            of_made = block.modulation(vector).unflatten(1, (6, 1, 32)).expand(-1, -1, 4, -1)
            shift, scale, gate, *mlp = torch.cat([torch.zeros(2, 6, 5, 32), of_made], 2).unbind(1)
            q, k, v = (
                t.unflatten(-1, (2, -1)).transpose(1, 2)
                for t in block.qkv(block.norm1(x) * (1 + scale) + shift).chunk(3, -1)
            )
            attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, rule).transpose(1, 2).flatten(2)
            x = x + (1 + gate) * block.proj(attended)
            x = x + (1 + mlp[2]) * block.mlp(block.norm2(x) * (1 + mlp[1]) + mlp[0])
    torch.testing.assert_close(last, x[:, :5], rtol=0, atol=LIMITS["prefix attention"])
    torch.testing.assert_close(got, x[:, 5:], rtol=0, atol=LIMITS["prefix attention"])


def test_what_is_made_sees_what_is_given(network: AnyToAny) -> None:
    text = features(network, ("text",))["text"]
    codes = torch.full((2, 5, 1), 50)
    given, other = (Given(network, ("text",))(t) for t in (text, text.flip(1)))
    assert not torch.allclose(Made(network, "text")(codes, *given), Made(network, "text")(codes, *other))


def test_a_thing_is_recalled_by_whatever_is_nearest_to_its_key() -> None:
    memory = Memory(things=3, key_width=2, values={"look": 4})
    with torch.no_grad():
        memory.keys.copy_(torch.tensor([[3.0, 0.0], [0.0, 3.0], [-3.0, 0.0]]))
        memory.values["look"].copy_(torch.eye(4)[:3])
        recalled = memory.recall("look", torch.tensor([[0.0, 1.0], [-0.96, -0.28]]))
        between = memory.recall("look", torch.tensor([[0.5**0.5, 0.5**0.5]]))
    assert recalled.argmax(1).tolist() == [1, 2] and (recalled.amax(1) > 0.999).all()
    torch.testing.assert_close(between, torch.tensor([[0.5, 0.5, 0.0, 0.0]]), rtol=0, atol=1e-4)


def test_a_part_of_what_is_known_is_for_a_place_or_for_all_of_them(network: AnyToAny) -> None:
    value, other = torch.zeros(1, 24), torch.zeros(1, 24)
    other[0, 4 * 2 : 4 * 3] = 1  # the third of six parts
    picture, sound = network.output("picture"), network.output("sound")
    changed = (picture.recalled(value) != picture.recalled(other)).any(2)[0]
    assert changed.tolist() == [False, False, True, False, False, False]
    assert sound.recalled(other).shape == (1, 1, 32)


def test_what_is_known_cannot_be_divided_into_any_number_of_parts() -> None:
    with pytest.raises(ValueError, match="5 parts of 24 numbers for 6 places"):
        CodesOutput(CodesConfig((4, 6), (2, 2), 20, recalls="look", parts=5), 32, 24)


@pytest.mark.parametrize("absent", ["text", "picture", "film", "sound", "series"])
def test_padding_and_zeros_are_as_if_nothing_were_there(network: AnyToAny, absent: str) -> None:
    names = ("text", "picture", "series") if absent == "text" else ("text", "picture")
    present = features(network, tuple(n for n in names if n != absent))
    shape = (2, 7) if absent == "text" else (2, GIVEN[absent], 32)
    zeros = {absent: torch.zeros(shape, dtype=torch.int64 if absent == "text" else torch.float32)}
    codes = torch.full((2, 4, 6), 20)
    without, with_zeros = (
        network.made("picture", codes, *network.given(given)) for given in (present, present | zeros)
    )
    torch.testing.assert_close(without, with_zeros, rtol=0, atol=LIMITS["prefix attention"])
    torch.testing.assert_close(network.embed(present), network.embed(present | zeros), rtol=0, atol=1e-5)


def test_with_nothing_given_it_still_makes_something(network: AnyToAny) -> None:
    logits = network.made("text", torch.full((2, 5, 1), 50), *network.given({"text": torch.zeros(2, 3).long()}))
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", ["text", "picture", "sound", "film", "series"])
def test_embeds_are_unit_vectors(network: AnyToAny, name: str) -> None:
    vectors = Embed(network, name)(features(network, (name,))[name])
    assert vectors.shape == (2, 128)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
