"""aMUSEd folders as diffusers writes them, small, with random weights that make tokens differ."""

import json
from pathlib import Path

import torch
from diffusers import AmusedPipeline, AmusedScheduler, UVit2DModel, VQModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

GRID, CODES, MASK = 6, 60, 63
LENGTH = 12  # tokens of a prompt; CLIP has 77


def tokenizer(folder: Path) -> CLIPTokenizer:
    """Bytes, and a few merges, in the two files that CLIP's tokenizers come in."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    merges = ["a p", "ap p", "r e", "re d</w>"]
    words = [*letters, *(f"{c}</w>" for c in letters), *(m.replace(" ", "") for m in merges)]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    return CLIPTokenizer.from_pretrained(folder, model_max_length=LENGTH)


def amused_pipeline(folder: Path) -> AmusedPipeline:
    """The same on every call; ``folder`` is for the tokenizer's files."""
    tokens = tokenizer(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(tokens), hidden_size=32, intermediate_size=64, num_hidden_layers=3,
                num_attention_heads=4, projection_dim=32, max_position_embeddings=LENGTH,
                bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id,
            )
        )  # fmt: skip
        transformer = UVit2DModel(
            hidden_size=32, cond_embed_dim=32, micro_cond_encode_dim=16, micro_cond_embed_dim=80,
            encoder_hidden_size=32, vocab_size=MASK + 1, codebook_size=CODES, in_channels=32, block_out_channels=32,
            num_res_blocks=1, block_num_heads=4, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            sample_size=GRID,
        )  # fmt: skip
        vqvae = VQModel(
            block_out_channels=(16, 32), layers_per_block=1, latent_channels=8, num_vq_embeddings=CODES,
            norm_num_groups=8, sample_size=2 * GRID, mid_block_add_attention=False, lookup_from_codebook=True,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        )  # fmt: skip
        for name, parameter in (*transformer.named_parameters(), *text.named_parameters()):
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=1.0 if "embed" in name else 1.5 * parameter[0].numel() ** -0.5)
            elif not parameter.any():  # zeros hide what they multiply
                torch.nn.init.normal_(parameter, std=0.2)
    pipeline = AmusedPipeline(vqvae, tokens, text, transformer, AmusedScheduler(mask_token_id=MASK))
    for module in (vqvae, text, transformer):
        module.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
