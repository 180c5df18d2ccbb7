"""Which tensors an OpenVLA folder holds, by its ``config.json``: name, shape, and what never runs."""

from collections.abc import Mapping

from qvla_ros.errors import UnsupportedModelError
from qvla_ros.models.typed_json import from_json
from qvla_ros.models.vision_transformer import TowerConfig

Shape = tuple[int, ...]

_KNOWN_TOWERS = {
    "dinosiglip-vit-so-224px": (
        TowerConfig(1024, 24, 16, 4096, 224, 14, registers=4, class_token=True, layer_scale=True),
        TowerConfig(1152, 27, 16, 4304, 224, 14, attention_pool=True),
    )
}
# Llama-2 as OpenVLA instantiates it; the released text_config states only what differs.
_LLAMA_DEFAULTS: dict[str, int | float | str | bool | None] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "vocab_size": 32064,
}
_LLAMA_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "vocab_size",
)


def read_towers(config: dict) -> tuple[TowerConfig, TowerConfig]:
    """Find the sizes of the two towers: stated under ``vision_towers``, or known by their id.

    Raises:
        UnsupportedModelError: Neither is there.
    """
    stated = config.get("vision_towers")
    if stated is not None:
        if not isinstance(stated, list) or len(stated) != 2:
            raise UnsupportedModelError("config.json: vision_towers must be a list of two")
        try:
            first, second = (
                from_json(TowerConfig, tower, f"vision_towers[{index}]")
                for index, tower in enumerate(stated)
            )
        except ValueError as error:
            raise UnsupportedModelError(f"config.json: {error}") from error
        return first, second
    name = config.get("vision_backbone_id")
    if name not in _KNOWN_TOWERS:
        raise UnsupportedModelError(
            f"config.json: unknown vision_backbone_id {name!r}; known: {', '.join(_KNOWN_TOWERS)}. "
            "State the sizes of both towers under vision_towers."
        )
    return _KNOWN_TOWERS[name]


def read_llama(config: dict) -> dict[str, int | float | str | bool | None]:
    """Arguments of ``LlamaConfig``: OpenVLA's defaults under what ``text_config`` states.

    Raises:
        UnsupportedModelError: The language model is not a Llama.
    """
    text = config.get("text_config")
    if not isinstance(text, dict) or text.get("model_type", "llama") != "llama":
        raise UnsupportedModelError("config.json: text_config.model_type is not 'llama'")
    dropped = ("model_type", "torch_dtype", "dtype", "_name_or_path", "architectures")
    stated = {key: value for key, value in text.items() if key not in dropped}
    llama = {**_LLAMA_DEFAULTS, **_with_plain_rope(stated)}
    try:
        require_llama_sizes(llama)
    except ValueError as error:
        raise UnsupportedModelError(f"config.json: text_config: {error}") from error
    return llama


def _with_plain_rope(text: dict) -> dict:
    """``rope_parameters``, as transformers 5 writes them, in the older words; if they are plain."""
    rope = text.get("rope_parameters")
    if rope is None or not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        return text
    if rope.keys() - {"rope_type", "rope_theta"}:
        return text
    rest = {key: value for key, value in text.items() if key != "rope_parameters"}
    return {"rope_theta": rope["rope_theta"], **rest} if "rope_theta" in rope else rest


def require_llama_sizes(llama: Mapping[str, object]) -> None:
    """Refuse what ``LlamaConfig`` cannot be made of.

    Raises:
        ValueError: A size is no positive whole number, or a rate no number, or the heads do not
            divide the width; the message names it.
    """
    for name in _LLAMA_SIZES:
        value = llama.get(name, 1)
        optional = name in ("head_dim", "num_key_value_heads") and value is None
        if not optional and (type(value) is not int or value < 1):
            raise ValueError(f"{name} must be a positive whole number, not {value!r}")
    for name in ("rms_norm_eps", "rope_theta"):
        if type(llama.get(name, 1.0)) not in (int, float):
            raise ValueError(f"{name} must be a number, not {llama[name]!r}")
    if _integer(llama, "hidden_size") % _integer(llama, "num_attention_heads"):
        raise ValueError("num_attention_heads must divide hidden_size")


def expected_tensors(
    towers: tuple[TowerConfig, TowerConfig], llama: dict[str, int | float | str | bool | None]
) -> dict[str, Shape]:
    """Every tensor of the shards with its shape, dead ones included."""
    width = _integer(llama, "hidden_size")
    shapes: dict[str, Shape] = {}
    for prefix, tower in zip(("featurizer", "fused_featurizer"), towers, strict=True):
        shapes |= _under(f"vision_backbone.{prefix}.", _tower(tower))
    vision = sum(tower.width for tower in towers)
    for name, rows, columns in (
        ("fc1", 4 * vision, vision),
        ("fc2", width, 4 * vision),
        ("fc3", width, width),
    ):
        shapes |= _linear(f"projector.{name}", rows, columns)
    return shapes | _under("language_model.", _llama(llama))


def dead_tensors(towers: tuple[TowerConfig, TowerConfig]) -> set[str]:
    """Vision tensors that are never executed: last block, final norm, pooling head."""
    dead: set[str] = set()
    for prefix, tower in zip(("featurizer", "fused_featurizer"), towers, strict=True):
        start = f"vision_backbone.{prefix}."
        marks = (f"blocks.{tower.depth - 1}.", "norm.", "attn_pool.")
        dead |= {f"{start}{name}" for name in _tower(tower) if name.startswith(marks)}
    return dead


def is_target(name: str) -> bool:
    """Whether the method gives bits to this tensor: block and patch weights of towers and Llama."""
    if not name.endswith(".weight") or "norm" in name:
        return False
    tower = name.startswith("vision_backbone.") and ".attn_pool." not in name
    return tower or name.startswith("language_model.model.layers.")


def _integer(llama: Mapping[str, object], key: str) -> int:
    value = llama.get(key)
    if not isinstance(value, int):
        raise UnsupportedModelError(f"config.json: text_config.{key} must be a whole number")
    return value


def _under(prefix: str, shapes: dict[str, Shape]) -> dict[str, Shape]:
    return {prefix + name: shape for name, shape in shapes.items()}


def _linear(name: str, rows: int, columns: int) -> dict[str, Shape]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _tower(tower: TowerConfig) -> dict[str, Shape]:
    width, side = tower.width, tower.patch_size
    shapes: dict[str, Shape] = {
        "pos_embed": (1, tower.patches, width),
        "patch_embed.proj.weight": (width, 3, side, side),
        "patch_embed.proj.bias": (width,),
    }
    if tower.class_token:
        shapes["cls_token"] = (1, 1, width)
    if tower.registers:
        shapes["reg_token"] = (1, tower.registers, width)
    for index in range(tower.depth):
        shapes |= _under(f"blocks.{index}.", _block(tower))
    shapes |= _norm("norm", width)
    return shapes | (_attention_pool(tower) if tower.attention_pool else {})


def _block(tower: TowerConfig) -> dict[str, Shape]:
    width = tower.width
    shapes = _norm("norm1", width) | _linear("attn.qkv", 3 * width, width)
    shapes |= _linear("attn.proj", width, width) | _norm("norm2", width)
    shapes |= _linear("mlp.fc1", tower.mlp_width, width)
    shapes |= _linear("mlp.fc2", width, tower.mlp_width)
    if tower.layer_scale:
        shapes |= {"ls1.scale_factor": (width,), "ls2.scale_factor": (width,)}
    return shapes


def _attention_pool(tower: TowerConfig) -> dict[str, Shape]:
    width = tower.width
    shapes: dict[str, Shape] = {"latent": (1, 1, width)}
    shapes |= _linear("q", width, width) | _linear("kv", 2 * width, width)
    shapes |= _linear("proj", width, width) | _norm("norm", width)
    shapes |= _linear("mlp.fc1", tower.mlp_width, width)
    shapes |= _linear("mlp.fc2", width, tower.mlp_width)
    return _under("attn_pool.", shapes)


def _llama(llama: dict[str, int | float | str | bool | None]) -> dict[str, Shape]:
    width = _integer(llama, "hidden_size")
    hidden = _integer(llama, "intermediate_size")
    heads = _integer(llama, "num_attention_heads")
    groups = llama.get("num_key_value_heads") or heads
    head_width = llama.get("head_dim") or width // heads
    queries, keys = int(heads * head_width), int(groups) * int(head_width)
    vocabulary = _integer(llama, "vocab_size")
    shapes: dict[str, Shape] = {
        "model.embed_tokens.weight": (vocabulary, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (vocabulary, width),
    }
    for index in range(_integer(llama, "num_hidden_layers")):
        layer = {
            "self_attn.q_proj.weight": (queries, width),
            "self_attn.k_proj.weight": (keys, width),
            "self_attn.v_proj.weight": (keys, width),
            "self_attn.o_proj.weight": (width, queries),
            "mlp.gate_proj.weight": (hidden, width),
            "mlp.up_proj.weight": (hidden, width),
            "mlp.down_proj.weight": (width, hidden),
            "input_layernorm.weight": (width,),
            "post_attention_layernorm.weight": (width,),
        }
        shapes |= _under(f"model.layers.{index}.", layer)
    return shapes
