"""The float weight of a layer, wherever it is."""

import torch
from torch import Tensor, nn

from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.network import VlaNetwork
from qvla_ros.models.weight_source import FetchedLinear, Weight


def linear_weight(network: VlaNetwork, layer: LinearLayer) -> Tensor:
    """The weight of a layer of a float network, ``[rows, columns]``; not to be written to.

    Raises:
        ValueError: The layer is packed already.
    """
    module = network.get_submodule(layer.name)
    if isinstance(module, FetchedLinear):
        return module.fetched()
    if not isinstance(module, nn.Linear):
        raise ValueError(f"{layer.name} is not a float Linear: quantize the float network")
    return module.weight.detach()


@torch.no_grad()
def put_weight(network: VlaNetwork, name: str, weight: Weight) -> None:
    """Give the layer ``name`` another weight: written over the old one, or fetched from now on."""
    module = network.get_submodule(name)
    if isinstance(module, FetchedLinear):
        module.source = weight
    else:
        network.get_parameter(f"{name}.weight").copy_(weight.read())
