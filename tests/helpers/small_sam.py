"""A SAM of random weights that is small enough for tests."""

from pathlib import Path

import torch


def save_small_sam(folder: Path, seed: int) -> None:
    """Save one that sees images of 64 pixels; it is sure of nothing."""
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    parts = {"image_size": 64, "patch_size": 16}
    config = SamConfig(
        vision_config={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "output_channels": 16,
            "num_pos_feats": 8,
            "mlp_dim": 16,
            "global_attn_indexes": [0],
            **parts,
        },
        prompt_encoder_config={"hidden_size": 16, **parts},
        mask_decoder_config={
            "hidden_size": 16,
            "num_attention_heads": 2,
            "mlp_dim": 16,
            "iou_head_hidden_dim": 16,
            "num_hidden_layers": 2,
        },
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        SamModel(config).save_pretrained(folder)
    images = SamImageProcessor(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}, mask_size=None
    )
    SamProcessor(images).save_pretrained(folder)
