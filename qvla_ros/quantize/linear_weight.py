"""The float weight of a layer."""

from torch import Tensor, nn

from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.network import VlaNetwork


def linear_weight(network: VlaNetwork, layer: LinearLayer) -> Tensor:
    """The weight of a layer of a float network, ``[rows, columns]``, in its own memory.

    Raises:
        ValueError: The layer is packed already.
    """
    module = network.get_submodule(layer.name)
    if not isinstance(module, nn.Linear):
        raise ValueError(f"{layer.name} is not a float Linear: quantize the float network")
    return module.weight.detach()
