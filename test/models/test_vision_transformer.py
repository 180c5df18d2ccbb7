"""The own vision tower against the Hugging Face modules of the same architectures."""

import pytest
import torch
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from qvla_ros.models.vision_transformer import TowerConfig, VisionTransformer

SIZES = {"width": 32, "depth": 4, "heads": 4, "mlp_width": 64, "image_size": 28, "patch_size": 14}


# Our name of each part, and the names that it has had in the reference over its versions.
PARTS = {
    "attn.proj": ("attention.o_proj", "attention.output.dense", "self_attn.out_proj"),
    "norm1": ("norm1", "layer_norm1"),
    "norm2": ("norm2", "layer_norm2"),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
QUERIES = ("attention.{}_proj", "attention.attention.{}", "self_attn.{}_proj")
LONG = {"q": "query", "k": "key", "v": "value"}


def released_names(block: int, theirs: dict[str, torch.Tensor], prefix: str) -> dict:
    """One block of a Hugging Face tower under the names of a released OpenVLA file."""

    def find(paths, kind):
        return next(theirs[key] for path in paths if (key := f"{prefix}{path}.{kind}") in theirs)

    named = {}
    for kind in ("weight", "bias"):
        fused = []
        for short, long in LONG.items():
            paths = [path.format(word) for path in QUERIES for word in (short, long)]
            fused.append(find(paths, kind))
        named[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(fused)
        for ours, paths in PARTS.items():
            named[f"blocks.{block}.{ours}.{kind}"] = find(paths, kind)
    return named


def randomized(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return module.double().eval()


def require_equal(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Computed in float64, where sums in another order differ least: then no float32 differs."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert (ours.float() - theirs.float()).abs().max() == 0.0


def test_the_dinov2_tower_equals_the_reference_with_registers():
    config = Dinov2WithRegistersConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        mlp_ratio=2,
        image_size=28,
        patch_size=14,
        num_register_tokens=3,
    )
    theirs = randomized(Dinov2WithRegistersModel(config))
    state = theirs.state_dict()
    positions = state["embeddings.position_embeddings"]
    named = {
        # A released tower has no position for its class token; here it is folded in.
        "cls_token": state["embeddings.cls_token"] + positions[:, :1],
        "reg_token": state["embeddings.register_tokens"],
        "pos_embed": positions[:, 1:],
        "patch_embed.proj.weight": state["embeddings.patch_embeddings.projection.weight"].flatten(
            1
        ),
        "patch_embed.proj.bias": state["embeddings.patch_embeddings.projection.bias"],
    }
    for block in range(3):
        prefix = f"encoder.layer.{block}."
        named |= released_names(block, state, prefix)
        for scale in (1, 2):
            key = f"{prefix}layer_scale{scale}.lambda1"
            named[f"blocks.{block}.ls{scale}.scale_factor"] = state[key]
    tower = TowerConfig(**SIZES, registers=3, class_token=True, layer_scale=True)
    ours = VisionTransformer(tower).double().eval()
    ours.load_state_dict(named)
    pixels = torch.randn(
        2, 3, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    expected = theirs(pixels, output_hidden_states=True).hidden_states[-2][:, 4:]
    require_equal(ours(pixels), expected)


def test_the_siglip_tower_equals_the_reference_with_exact_gelu():
    config = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
        hidden_act="gelu",
    )
    theirs = randomized(SiglipVisionModel(config))
    state = {name.removeprefix("vision_model."): t for name, t in theirs.state_dict().items()}
    named = {
        "pos_embed": state["embeddings.position_embedding.weight"][None],
        "patch_embed.proj.weight": state["embeddings.patch_embedding.weight"].flatten(1),
        "patch_embed.proj.bias": state["embeddings.patch_embedding.bias"],
    }
    for block in range(3):
        named |= released_names(block, state, f"encoder.layers.{block}.")
    ours = VisionTransformer(TowerConfig(**SIZES, attention_pool=True)).double().eval()
    ours.load_state_dict(named)
    pixels = torch.randn(
        2, 3, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    expected = theirs(pixels, output_hidden_states=True).hidden_states[-2]
    require_equal(ours(pixels), expected)


@pytest.mark.parametrize("prefix_tokens", [0, 3])
def test_only_patch_tokens_leave_the_tower(prefix_tokens):
    tower = TowerConfig(**SIZES, registers=prefix_tokens, class_token=bool(prefix_tokens))
    features = VisionTransformer(tower)(torch.zeros(1, 3, 28, 28))
    assert features.shape == (1, 4, 32)
