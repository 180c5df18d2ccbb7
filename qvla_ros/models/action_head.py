"""The small networks that OpenVLA-OFT keeps beside its shards: L1 head, proprioception projector."""

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """``x + ReLU(Linear(LayerNorm(x)))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[..., width]`` to the same shape."""
        return features + self.ffn(features)


class ResidualMlp(nn.Module):
    """The regression network of the L1 head."""

    def __init__(self, inputs: int, width: int, outputs: int, blocks: int = 2) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(inputs)
        self.fc1 = nn.Linear(inputs, width)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[..., inputs]`` to ``[..., outputs]``."""
        features = F.relu(self.fc1(self.layer_norm1(features)))
        for block in self.mlp_resnet_blocks:
            features = block(features)
        return self.fc2(self.layer_norm2(features))


class L1ActionHead(nn.Module):
    """Regress a chunk from the hidden states of its placeholder tokens."""

    def __init__(self, width: int, action_dim: int) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.model = ResidualMlp(width * action_dim, width, action_dim)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``[batch, horizon * action_dim, width]`` to ``[batch, horizon, action_dim]``."""
        batch, tokens, width = hidden.shape
        return self.model(
            hidden.reshape(batch, tokens // self.action_dim, self.action_dim * width)
        )


class ProprioProjector(nn.Module):
    """Turn a normalised state vector into one token."""

    def __init__(self, state_dim: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(state_dim, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, state: Tensor) -> Tensor:
        """Map ``[batch, state_dim]`` to ``[batch, width]``."""
        return self.fc2(F.gelu(self.fc1(state)))
