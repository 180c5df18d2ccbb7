"""Packed checkpoints through plain ``AutoModel.from_pretrained``, for transformers 5 and later.

    qvla_ros.hf.export_folder(Path("policy.qvla.safetensors"), Path("folder"))

    qvla_ros.hf.register()
    model = transformers.AutoModel.from_pretrained("folder")
    chunk = model.policy.infer(observation).chunk

The folder's ``model.safetensors`` *is* the packed checkpoint, byte by byte; ``config.json`` says
which tensors to expect. The weights stay packed, and the answers are those of ``load_policy``.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.quantizers import HfQuantizer, auto
from transformers.utils.quantization_config import QuantizationConfigMixin

from qvla_ros.atomic_file import atomic_file
from qvla_ros.checkpoint.layout import (
    expected_tensors,
    layer_from_tensors,
    layer_to_tensors,
)
from qvla_ros.checkpoint.manifest import Manifest
from qvla_ros.checkpoint.reader import PackedCheckpoint, read_checkpoint
from qvla_ros.checkpoint.tensor_names import FLOAT_PREFIX
from qvla_ros.errors import CheckpointError, ConfigurationError
from qvla_ros.models.network import ModelInputs
from qvla_ros.policy.policy import Policy, policy_of

METHOD = "qvla"
"""Name of the model type and of the quantization method."""

_FLOATS = "floats."  # instead of the file's prefix, which is the name of a method of Module
_OLDEST = 5  # major version whose quantizers load what they do not know


class QvlaConfig(PretrainedConfig):
    """``config.json`` of an exported folder.

    Attributes:
        manifest: Text of the checkpoint's manifest.
        tensors: Name to dtype (as ``torch`` calls it) and shape of every tensor of the file.
    """

    model_type = METHOD

    def __init__(
        self, manifest: str = "", tensors: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Also what the library itself keeps in a configuration."""
        self.manifest = manifest
        self.tensors = tensors or {}
        super().__init__(**kwargs)


class QvlaQuantizationConfig(QuantizationConfigMixin):
    """Says no more than that the weights are packed; the manifest tells the rest."""

    def __init__(self, **_: Any) -> None:
        """Whatever else the file says is not needed."""
        self.quant_method = METHOD


class QvlaModel(PreTrainedModel):
    """A packed policy as a model of the library.

    Attributes:
        policy: Answers observations; there once the weights are.
        network: The network of the policy.
    """

    config_class = QvlaConfig
    policy: Policy

    def __init__(self, config: QvlaConfig) -> None:
        """Places for the tensors of the file, without memory."""
        super().__init__(config)
        for name, (dtype, shape) in config.tensors.items():
            place, _, leaf = _renamed(name, FLOAT_PREFIX, _FLOATS).rpartition(".")
            empty = torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
            _container(self, place).register_buffer(leaf, empty)
        self.post_init()

    def forward(self, pixels: Tensor, token_ids: Tensor, state: Tensor) -> Tensor:
        """Normalised actions, float32 ``[batch, horizon, action_dim]``; see ``ModelInputs``."""
        end = self.policy.processing.end_token_id
        return self.policy.normalized_actions(ModelInputs(pixels, token_ids, end, state))


class QvlaQuantizer(HfQuantizer):
    """Takes the tensors of a packed checkpoint as they are, and makes the policy of them."""

    requires_calibration = True
    _dtype = torch.float32

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Remember the dtype of the activations."""
        self._dtype = dtype
        return dtype

    def get_new_dtype(self, converter: object, param: object, dtype: object) -> None:
        """No tensor of the file is cast."""

    def get_weight_conversions(self) -> list[Any]:
        """The only tensors that have another name in the model than in the file."""
        from transformers.core_model_loading import WeightRenaming

        return [WeightRenaming("^" + FLOAT_PREFIX.replace(".", r"\."), _FLOATS)]

    def _process_model_after_weight_loading(self, model: QvlaModel, **_: Any) -> QvlaModel:
        checkpoint = _loaded(model)
        for name in list(model._modules):
            delattr(model, name)
        model.policy = policy_of(checkpoint, compute_dtype=self._dtype)
        model.network = model.policy.network
        return model

    def is_serializable(self) -> bool:
        """Export the checkpoint again instead."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Packed weights have no gradient."""
        return False


def register() -> None:
    """Make ``AutoModel.from_pretrained`` know exported folders; a second call changes nothing.

    Raises:
        ConfigurationError: transformers is older than 5.
    """
    version = transformers.__version__
    if int(version.partition(".")[0]) < _OLDEST:
        raise ConfigurationError(
            f"transformers {version} cannot load packed checkpoints: install transformers "
            f"{_OLDEST} or later, or use qvla_ros.policy.policy.load_policy, which needs no 5"
        )
    if METHOD in auto.AUTO_QUANTIZER_MAPPING:
        return
    auto.register_quantization_config(METHOD)(QvlaQuantizationConfig)
    auto.register_quantizer(METHOD)(QvlaQuantizer)
    AutoConfig.register(METHOD, QvlaConfig)
    AutoModel.register(QvlaConfig, QvlaModel)


def export_folder(checkpoint: Path, folder: Path) -> Path:
    """Write a folder that ``from_pretrained`` reads; the checkpoint is linked, or else copied.

    Args:
        checkpoint: Packed checkpoint; read and checked as a whole.
        folder: Must not exist.

    Returns:
        ``folder``.

    Raises:
        CheckpointError: The checkpoint is corrupt.
        ConfigurationError: The folder exists, or cannot be written; nothing of it is left then.
    """
    packed = read_checkpoint(checkpoint)
    tensors = dict(packed.tensors)
    for layer in packed.layers.values():
        tensors |= layer_to_tensors(layer)
    config = {
        "model_type": METHOD,
        "architectures": [QvlaModel.__name__],
        "quantization_config": {"quant_method": METHOD},
        "manifest": packed.manifest.to_json(),
        "tensors": {
            name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
            for name, tensor in sorted(tensors.items())
        },
    }
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise ConfigurationError(f"{folder} exists already: name another folder") from None
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be written: {error}") from error
    try:
        _fill_folder(folder, checkpoint, config)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise ConfigurationError(f"{folder} cannot be written: {error}") from error
        raise
    return folder


def _fill_folder(folder: Path, checkpoint: Path, config: dict[str, Any]) -> None:
    weights = folder / "model.safetensors"
    try:
        os.link(checkpoint, weights)
    except OSError:
        shutil.copyfile(checkpoint, weights)
    with atomic_file(folder / "config.json") as file:
        file.write(json.dumps(config, indent=1).encode())


def _loaded(model: QvlaModel) -> PackedCheckpoint:
    """The checkpoint, of the tensors that the library has put in their places."""
    tensors = {
        _renamed(name, _FLOATS, FLOAT_PREFIX): tensor for name, tensor in model.named_buffers()
    }
    for name, tensor in tensors.items():
        # The library only warns of a tensor that the file lacks, and makes one up.
        if not getattr(tensor, "_is_hf_initialized", False):
            raise CheckpointError(f"model.safetensors lacks the tensor {name!r}")
    manifest = Manifest.from_json(model.config.manifest)
    layers = {}
    for spec in manifest.layers:
        if absent := sorted(expected_tensors(spec).keys() - tensors.keys()):
            raise CheckpointError(f"config.json does not name the tensor {absent[0]!r}")
        layers[spec.name] = layer_from_tensors(spec, tensors)
        layers[spec.name].validate()
        for name in expected_tensors(spec):
            del tensors[name]
    return PackedCheckpoint(manifest, layers, tensors)


def _renamed(name: str, prefix: str, other: str) -> str:
    return other + name.removeprefix(prefix) if name.startswith(prefix) else name


def _container(root: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path, made of empty ones where there is none."""
    for name in path.split("."):
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    return root
