"""aMUSEd folders as diffusers writes them, small and at the size that is published, with random weights.

Random weights alone make a poor test: zeros hide what they multiply, codes that are all but equal make the same
picture, and logits that are all but equal make a draw that the last bit decides.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AmusedPipeline, AmusedScheduler, UVit2DModel, VQModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

GRID, CODES, MASK = 6, 60, 63
LENGTH = 12  # tokens of a prompt; CLIP has 77


@dataclass(frozen=True)
class Size:
    """Configurations of the parts."""

    text: dict[str, Any]
    transformer: dict[str, Any]
    vqvae: dict[str, Any]
    spread: float = 1.0  # of the logits


TINY = Size(
    {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "projection_dim": 32, "max_position_embeddings": LENGTH,
    },
    {
        "hidden_size": 32, "cond_embed_dim": 32, "micro_cond_encode_dim": 16, "micro_cond_embed_dim": 80,
        "encoder_hidden_size": 32, "vocab_size": MASK + 1, "codebook_size": CODES, "in_channels": 32,
        "block_out_channels": 32, "num_res_blocks": 1, "block_num_heads": 4, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 64, "sample_size": GRID,
    },
    {
        "block_out_channels": (16, 32), "layers_per_block": 1, "latent_channels": 8, "num_vq_embeddings": CODES,
        "norm_num_groups": 8, "sample_size": 2 * GRID, "mid_block_add_attention": False, "lookup_from_codebook": True,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    },
)  # fmt: skip

# amused/amused-256: CLIP's text encoder of ViT-L/14, UVit2DModel's own defaults, a VQModel of f16
AMUSED_256 = Size(
    {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "projection_dim": 768, "max_position_embeddings": 77, "vocab_size": 49408,
    },
    {"sample_size": 16},
    {
        "block_out_channels": (128, 256, 256, 512, 768), "layers_per_block": 2, "latent_channels": 64,
        "num_vq_embeddings": 8192, "sample_size": 256, "mid_block_add_attention": False, "lookup_from_codebook": True,
        "force_upcast": True,
        "down_block_types": ("DownEncoderBlock2D",) * 5, "up_block_types": ("UpDecoderBlock2D",) * 5,
    },
    spread=1.7,
)  # fmt: skip


def tokenizer(folder: Path, length: int = LENGTH) -> CLIPTokenizer:
    """Bytes, and a few merges, in the two files that CLIP's tokenizers come in."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    merges = ["a p", "ap p", "r e", "re d</w>"]
    words = [*letters, *(f"{c}</w>" for c in letters), *(m.replace(" ", "") for m in merges)]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    return CLIPTokenizer.from_pretrained(folder, model_max_length=length)


def amused_pipeline(folder: Path, size: Size = TINY) -> AmusedPipeline:
    """Build the pipeline, the same on every call; ``folder`` is for the tokenizer's files."""
    tokens = tokenizer(folder, size.text["max_position_embeddings"])
    special = {name: getattr(tokens, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        text = CLIPTextModelWithProjection(CLIPTextConfig(**{"vocab_size": len(tokens), **special, **size.text}))
        transformer = UVit2DModel(**size.transformer)
        vqvae = VQModel(**size.vqvae)
        parts = (transformer, text)
        tables = {m.weight for part in parts for m in part.modules() if isinstance(m, torch.nn.Embedding)}
        for parameter in (p for part in parts for p in part.parameters()):
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=1.0 if parameter in tables else 1.5 * parameter[0].numel() ** -0.5)
            elif not parameter.any():  # zeros hide what they multiply
                torch.nn.init.normal_(parameter, std=0.2)
        transformer.mlm_layer.conv2.weight.mul_(size.spread)
        vqvae.quantize.embedding.weight.normal_()
        vqvae.quant_conv.weight.mul_(4)  # what the encoder makes is spread as the codebook is
        vqvae.decoder.conv_out.bias.add_(0.5)  # pictures are in [0, 1]
    pipeline = AmusedPipeline(vqvae, tokens, text, transformer, AmusedScheduler(transformer.config.vocab_size - 1))
    for module in (vqvae, text, transformer):
        module.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
