"""Two vision towers over the same image, and what turns their features into language tokens."""

from dataclasses import replace
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from qvla_ros.models.stages import Stage
from qvla_ros.models.vision_transformer import TowerConfig, VisionTransformer

TOWERS = ("featurizer", "fused_featurizer")
"""Names of the towers; the tensors between their stages are called so too."""


class VisionBackbone(nn.Module):
    """Two towers over the same image, features side by side."""

    def __init__(self, towers: tuple[TowerConfig, TowerConfig]) -> None:
        super().__init__()
        self.featurizer = VisionTransformer(towers[0])
        self.fused_featurizer = VisionTransformer(towers[1])

    def stages(self, tower_name: str) -> list[Stage]:
        """One tower, block by block; the tensor is called after the tower."""
        tower = cast(VisionTransformer, self.get_submodule(tower_name))
        path, last = f"vision_backbone.{tower_name}", len(tower.blocks) - 1
        stages = [Stage(f"{path}.patch_embed", (tower_name,), tower_name, tower.embed)]
        for index, block in enumerate(tower.blocks):
            name = f"{path}.blocks.{index}"
            stages.append(Stage(name, (tower_name,), tower_name, block))
        final = stages[last + 1]
        stages[last + 1] = replace(
            final, apply=lambda tokens: tower.patch_features(tower.blocks[last](tokens))
        )
        return stages


class Projector(nn.Module):
    """Patch features to language tokens."""

    def __init__(self, vision_width: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_width, 4 * vision_width)
        self.fc2 = nn.Linear(4 * vision_width, width)
        self.fc3 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[..., vision_width]`` to ``[..., width]``."""
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))
