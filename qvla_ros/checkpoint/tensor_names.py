"""The names that a checkpoint's tensors begin with when they belong to no packed layer."""

FLOAT_PREFIX = "float."
"""Prefix of the network's unpacked parameters: ``float.<parameter name>``."""

PROCESSING_PREFIX = "processing."
"""Prefix of the tensors that the processing needs."""

TOKENIZER_TENSOR = PROCESSING_PREFIX + "tokenizer_json"
"""The bytes of ``tokenizer.json``, ``uint8``."""

GOLDEN_TENSOR = PROCESSING_PREFIX + "golden_actions"
"""What the quantized network answers to ``models.golden_input``, ``float32 [horizon, action_dim]``;
the robot's self-test compares with it."""

OTHER_PREFIXES = (FLOAT_PREFIX, PROCESSING_PREFIX)
"""Every tensor is of a packed layer or has one of these prefixes; no layer's name has."""
