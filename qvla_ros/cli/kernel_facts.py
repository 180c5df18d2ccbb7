"""What ``qvla inspect --kernels`` says: which kernel would multiply here, and why."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qvla_ros.checkpoint.manifest import Manifest


def kernel_facts(manifest: "Manifest | None") -> dict[str, object]:
    """By layer of a checkpoint; without one, by activation bits.

    Shapes are ``rows x columns``, in brackets how many of them are stored.
    """
    from qvla_ros.kernels.cuda_device import resolve_device
    from qvla_ros.kernels.kernel_survey import survey_kernels
    from qvla_ros.kernels.selection import select_kernel
    from qvla_ros.policy.policy import default_compute_dtype

    device = resolve_device("auto")
    dtype = default_compute_dtype(device)
    where = f"{device.type}, {str(dtype).removeprefix('torch.')}"
    if manifest is None:
        choices = {bits: select_kernel(device, dtype, activation_bits=bits) for bits in (16, 8)}
        facts: dict[str, object] = {"on": where}
        for bits, choice in choices.items():
            facts[f"{bits}-bit activations"] = f"{choice.name}: {choice.reason}"
        return facts
    layers = survey_kernels(manifest.layers, device, dtype)
    reasons = sorted({f"{layer.kernel}: {layer.reason}" for layer in layers})
    numbers = {reason: str(number) for number, reason in enumerate(reasons, start=1)}
    return {
        "on": where,
        "layers": {
            layer.name: f"{layer}, reason {numbers[f'{layer.kernel}: {layer.reason}']}"
            for layer in layers
        },
        "reasons": {number: reason for reason, number in numbers.items()},
    }
