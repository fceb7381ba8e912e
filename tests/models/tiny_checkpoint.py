"""mmgen checkpoints small enough to save and load in milliseconds: random weights, nothing zero."""

import dataclasses
from math import pi

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from mmgen.export.networks.any_to_any import AnyToAnyConfig, CodesConfig
from mmgen.export.networks.dit import TextDiT, TextDiTConfig
from mmgen.export.networks.grouped_vqvae import GroupedVQVAEConfig
from mmgen.export.networks.token_dit import TokenDiT
from mmgen.export.networks.vqvae import VQVAE, VQVAEConfig
from mmgen.export.sources.checkpoint.any_to_any import AnyToAnyCheckpoint, MadeRecord, Parts, build
from mmgen.export.sources.checkpoint.text_to_picture import Checkpoint
from mmgen.runtime.storage.process import Flow, Masked
from mmgen.runtime.storage.schema import Defaults, Media

WORDS = ("[PAD]", "[UNK]", "red", "green", "blue", "apple", "cat", "rocket", "a", "the")
CODES = 32


def tiny_checkpoint() -> tuple[Checkpoint, VQVAE, TextDiT, bytes]:
    """Build what ``checkpoint.save`` takes after the folder, the same on every call."""
    autoencoder = VQVAEConfig(
        sample_size=16, channels=(8, 16), encoder_blocks=1, decoder_blocks=1, codes=CODES,
        latents_mean=(0.1, -0.1) * 4, latents_std=(0.5, 2.0) * 4,
    )  # fmt: skip
    denoiser = TextDiTConfig(
        latent_shape=(8, 4, 4), width=32, layers=2, heads=2, modulation_rank=8, vocabulary=16, text_length=6,
        text_width=16, text_layers=1, text_heads=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        vqvae, dit = VQVAE(autoencoder).eval(), TextDiT(denoiser).eval()
        for parameter in (*vqvae.parameters(), *dit.parameters()):
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    record = Checkpoint(
        name="small",
        licence="Apache-2.0",
        process=Flow(),
        defaults=Defaults("flow-euler", 4, guidance=3.0),
        autoencoder=autoencoder,
        denoiser=denoiser,
        examples=("red apple",),
    )
    return record, vqvae, dit, tokenizer.to_str().encode()


def tiny_token_checkpoint(**changes: object) -> tuple[Checkpoint, VQVAE, TokenDiT, bytes]:
    record, vqvae, _, tokenizer = tiny_checkpoint()
    config = dataclasses.replace(record.denoiser, latent_shape=(CODES, 4, 4))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        dit = TokenDiT(config).eval()
        for parameter in dit.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.3)
    process, defaults = Masked(codes=CODES, mask_id=CODES), Defaults("maskgit", 6, guidance=3.0)
    record = dataclasses.replace(record, name="tokens", process=process, defaults=defaults, denoiser=config)
    return dataclasses.replace(record, **changes), vqvae, dit, tokenizer


LENGTH, PLACES, SPOKEN = 4, 4, 12  # of a text, of a sound, and its codes
OUTPUTS = {
    "text": MadeRecord(Media("text", (LENGTH,), "int64", end_id=1), Defaults("llada", LENGTH), ("text", "picture")),
    "sound": MadeRecord(
        Media("audio", (PLACES * 800, 1), "float32", (-1.0, 1.0), rate=16000.0), Defaults("maskgit", 4), ("text",)
    ),
}


def tiny_any_to_any() -> tuple[AnyToAnyCheckpoint, Parts, bytes, dict[str, Tensor]]:
    """Build what ``any_to_any.save`` takes after the folder: a text and a sound; it shares with "small"."""
    small, vqvae, _, tokenizer = tiny_checkpoint()
    codes = {
        "text": CodesConfig((LENGTH, 1), (1, 1), len(WORDS)),
        "sound": CodesConfig((PLACES, 2), (1, 2), SPOKEN, "voice", PLACES),
    }
    sound = GroupedVQVAEConfig(places=PLACES, groups=2, codes=SPOKEN, channels=16, encoder_blocks=1, decoder_blocks=1)
    record = AnyToAnyCheckpoint(
        name="any",
        licence="MIT",
        network=AnyToAnyConfig(
            width=64,
            layers=1,
            heads=2,
            mlp_ratio=2,
            vocabulary=len(WORDS),
            embed_width=8,
            things=5,
            memory={"voice": 4 * PLACES},
            outputs=codes,
        ),
        picture=small.autoencoder,
        autoencoders={"sound": sound},
        inputs={"picture": Media("image", (64, 64, 3), "uint8", (0.0, 255.0))},
        outputs=OUTPUTS,
        embeds=("text", "picture"),
        texts=("red apple", "a cat"),
        shared="small",
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        parts = build(record)
        for parameter in (*parts.network.parameters(), *parts.autoencoders["sound"].parameters()):
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
        # Spectra near a tone's: of those that are no sound's, as random ones, phases amplify rounding errors much more.
        heard = parts.autoencoders["sound"]
        tone = torch.sin(2 * pi * 440 / 16_000 * torch.arange(PLACES * 800))[None]
        heard.decoder[-1].bias.copy_(heard.prepared(tone)[0].mean(-1))
        heard.decoder[-1].weight.mul_(0.3)
        picture = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    parts.network.eval()
    examples = {"picture": picture.repeat_interleave(8, 1).repeat_interleave(8, 2)}
    return record, Parts(parts.network, vqvae, parts.autoencoders), tokenizer, examples
