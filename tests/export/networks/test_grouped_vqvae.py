"""Autoencoders of sound, film and series: shapes, and codes that come back from the vectors they stand for."""

import pytest
import torch

from mmgen.export.networks.grouped_vqvae import FilmVQVAE, GroupedVQVAE, GroupedVQVAEConfig, SeriesVQVAE, SoundVQVAE


def build(kind: str) -> tuple[GroupedVQVAE, torch.Tensor]:
    torch.manual_seed(0)
    sizes = {"codes": 32, "channels": 16, "encoder_blocks": 1, "decoder_blocks": 1}
    match kind:
        case "sound":
            return SoundVQVAE(GroupedVQVAEConfig(places=6, groups=4, **sizes), iterations=1), torch.randn(2, 24 * 200)
        case "film":
            return FilmVQVAE(GroupedVQVAEConfig(places=64, groups=4, **sizes), 8), torch.randn(2, 8, 3, 64, 64)
        case _:
            return SeriesVQVAE(GroupedVQVAEConfig(places=16, groups=2, **sizes), 2), torch.randn(2, 64, 2)


@pytest.mark.parametrize(("kind", "places", "groups"), [("sound", 6, 4), ("film", 64, 4), ("series", 16, 2)])
def test_a_medium_becomes_codes_and_a_medium_again(kind: str, places: int, groups: int) -> None:
    model, media = build(kind)
    codes = model.nearest_codes(model.encode(model.prepared(media)))
    assert codes.shape == (2, places, groups)
    decoded = model.decode(model.lookup(codes))
    assert decoded.shape == model.prepared(media).shape
    assert model.finished(decoded).shape == media.shape


@pytest.mark.parametrize("kind", ["sound", "film", "series"])
def test_vectors_of_codes_are_nearest_to_these_codes(kind: str) -> None:
    model, _ = build(kind)
    codes = torch.randint(0, 32, (3, model.config.places, model.config.groups))
    assert torch.equal(model.nearest_codes(model.lookup(codes)), codes)


@pytest.mark.parametrize("kind", ["sound", "film", "series"])
def test_laying_out_is_undone(kind: str) -> None:
    """All but sound, which loses its phases; values beyond the range of pictures are cut."""
    model, media = build(kind)
    media = media.clamp(-1, 1)
    got = model.finished(model.prepared(media))
    assert torch.equal(got, media) if kind != "sound" else got.shape == media.shape
