"""Vision transformer with the parameter names of the released OpenVLA folders (DINOv2, SigLIP).

Only what is executed is built: OpenVLA reads the output of the last but one block, so the last
block, the final norm and the pooling head of a released tower do not exist here.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class TowerConfig:
    """Sizes of one tower.

    Attributes:
        width: Embedding size.
        depth: Blocks in the released file, the unused last one included.
        heads: Attention heads.
        mlp_width: Hidden size of the MLP.
        image_size: Side of the square input, pixels.
        patch_size: Side of a patch, pixels.
        registers: Register tokens (DINOv2 reg4: 4).
        class_token: Whether a class token stands before the patches.
        layer_scale: Whether residual branches are scaled by a learnt vector.
        attention_pool: Whether the file carries a (never executed) pooling head.
    """

    width: int
    depth: int
    heads: int
    mlp_width: int
    image_size: int
    patch_size: int
    registers: int = 0
    class_token: bool = False
    layer_scale: bool = False
    attention_pool: bool = False

    def __post_init__(self) -> None:
        sizes = (self.width, self.heads, self.mlp_width, self.image_size, self.patch_size)
        if min(sizes) < 1 or self.depth < 2 or self.registers < 0:
            raise ValueError(f"a tower cannot have these sizes: {self}")
        if self.width % self.heads or self.image_size % self.patch_size:
            raise ValueError(f"heads must divide the width, patches the image: {self}")

    @property
    def patches(self) -> int:
        """Patch tokens of one image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def live_blocks(self) -> int:
        """Blocks that are executed."""
        return self.depth - 1


class PatchEmbedding(nn.Module):
    """A strided convolution, written as one linear layer over flattened patches."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.proj = nn.Linear(3 * config.patch_size**2, config.width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map ``[batch, 3, side, side]`` to ``[batch, patches, width]``."""
        patches = F.unfold(pixels, self.patch_size, stride=self.patch_size).transpose(1, 2)
        return self.proj(patches)


class Attention(nn.Module):
    """Full self-attention with one fused query/key/value matrix."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``[batch, tokens, width]`` to the same shape."""
        batch, length, width = tokens.shape
        qkv = self.qkv(tokens).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    """Two linear layers around an exact (erf) GELU, as the released towers were trained."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``[batch, tokens, width]`` to the same shape."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class LayerScale(nn.Module):
    """A learnt factor a channel; the released files call it ``scale_factor``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Scale ``[..., width]``."""
        return tokens * self.scale_factor


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        scale = LayerScale if config.layer_scale else nn.Identity
        self.norm1 = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.attn = Attention(config)
        self.ls1 = scale(config.width)
        self.norm2 = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(config)
        self.ls2 = scale(config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``[batch, tokens, width]`` to the same shape."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))


class VisionTransformer(nn.Module):
    """One tower up to the output of its last but one block."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbedding(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.patches, config.width))
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        if config.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, config.registers, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.live_blocks))

    def embed(self, pixels: Tensor) -> Tensor:
        """Tokens before the first block, ``[batch, prefix + patches, width]``."""
        tokens = self.patch_embed(pixels) + self.pos_embed
        prefix = [
            getattr(self, name).expand(len(tokens), -1, -1)
            for name in ("cls_token", "reg_token")
            if hasattr(self, name)
        ]
        return torch.cat([*prefix, tokens], dim=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map normalised ``[batch, 3, side, side]`` to patch features ``[batch, patches, width]``."""
        tokens = self.embed(pixels)
        for block in self.blocks:
            tokens = block(tokens)
        return self.patch_features(tokens)

    def patch_features(self, tokens: Tensor) -> Tensor:
        """Drop the prefix: the last ``patches`` tokens."""
        return tokens[:, tokens.shape[1] - self.config.patches :]
