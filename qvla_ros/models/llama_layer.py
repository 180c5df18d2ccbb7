"""One layer of ``transformers.LlamaModel``, run alone, the same way on every version of the library."""

import inspect

import torch
from torch import Tensor, nn
from transformers import LlamaModel


class KeyValueCache:
    """Keys and values of every layer, with room for a whole sequence from the start.

    Shapes never change while a sequence grows, so a step can be compiled or captured once. Places
    that are not filled yet hold zeros, and the mask hides them.

    Attributes:
        positions: ``int64 [tokens]``: where the tokens stand that the layers are run on next.
        keyword: Under which name a layer of this version of the library takes a cache.
    """

    def __init__(self, llama: LlamaModel, batch: int, length: int, like: Tensor) -> None:
        """Make room for ``length`` tokens of ``batch`` sequences; device and dtype of ``like``."""
        config = llama.config
        shape = (batch, config.num_key_value_heads, length, config.head_dim)
        self.positions = torch.zeros(0, dtype=torch.long, device=like.device)
        # The library renamed it in 4.56.
        named = inspect.signature(type(llama.layers[0]).forward).parameters
        self.keyword = "past_key_values" if "past_key_values" in named else "past_key_value"
        self._keys = [like.new_zeros(shape) for _ in llama.layers]
        self._values = [like.new_zeros(shape) for _ in llama.layers]

    def update(
        self, keys: Tensor, values: Tensor, layer_index: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Take keys and values ``[batch, heads, tokens, size]``; answer all of that layer.

        The name and the first three arguments are those that the library calls.
        """
        self._keys[layer_index].index_copy_(2, self.positions, keys)
        self._values[layer_index].index_copy_(2, self.positions, values)
        return self._keys[layer_index], self._values[layer_index]


def run_llama_layer(
    llama: LlamaModel,
    layer: nn.Module,
    hidden: Tensor,
    mask: Tensor | None,
    cached: KeyValueCache | None = None,
) -> Tensor:
    """Map ``[batch, tokens, width]`` to the same shape.

    Args:
        llama: The model that the layer is of.
        layer: One of its layers.
        hidden: Tokens.
        mask: Additive, ``[batch or 1, 1, tokens, tokens or room of the cache]``; without it every
            token sees all others, which the library has to be told, or it takes a causal mask.
        cached: What earlier tokens left; without it, the tokens are the first ones.
    """
    keywords: dict[str, KeyValueCache | bool] = {} if mask is not None else {"is_causal": False}
    if cached is None:
        places = torch.arange(hidden.shape[1], device=hidden.device)[None]
    else:
        places = cached.positions[None]
        keywords[cached.keyword] = cached
    answer = layer(
        hidden,
        attention_mask=mask,
        position_ids=places,
        position_embeddings=llama.rotary_emb(hidden, places),
        use_cache=cached is not None,
        **keywords,
    )
    return answer[0] if isinstance(answer, tuple) else answer  # a tuple before 4.54


def causal_mask(queries: Tensor, keys: int, like: Tensor) -> Tensor:
    """Additive mask ``[1, 1, queries, keys]``: each token sees itself and what stands before it.

    Args:
        queries: ``int64 [queries]``: positions of the tokens that look.
        keys: Positions that there are.
        like: Device and dtype.
    """
    later = torch.arange(keys, device=queries.device)[None] > queries[:, None]
    mask = like.new_zeros(1, 1, len(queries), keys)
    return mask.masked_fill_(later, torch.finfo(like.dtype).min)
