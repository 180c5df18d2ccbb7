"""The closed set of things that can be wrong with a packed checkpoint."""

from enum import Enum


class CheckpointFault(str, Enum):
    """Stable word for each fault; carried by ``CheckpointError.fault``.

    The members are strings, so ``error.fault == "checksum"`` works without importing this class.
    """

    # The file itself
    MISSING = "missing"
    NOT_A_FILE = "not_a_file"
    UNREADABLE = "unreadable"
    UNWRITABLE = "unwritable"
    TRUNCATED = "truncated"
    TRAILING_BYTES = "trailing_bytes"
    CHECKSUM = "checksum"
    # The header
    HEADER_SIZE = "header_size"
    HEADER_JSON = "header_json"
    HEADER_ENTRY = "header_entry"
    UNKNOWN_DTYPE = "unknown_dtype"
    OFFSETS = "offsets"
    # The manifest
    MANIFEST_MISSING = "manifest_missing"
    MANIFEST_JSON = "manifest_json"
    MANIFEST_FIELD = "manifest_field"
    SCHEMA_VERSION = "schema_version"
    LAYER_SPEC = "layer_spec"
    PLAN_MISMATCH = "plan_mismatch"
    # The tensors against the manifest
    TENSOR_MISSING = "tensor_missing"
    TENSOR_UNEXPECTED = "tensor_unexpected"
    TENSOR_DTYPE = "tensor_dtype"
    TENSOR_SHAPE = "tensor_shape"
    # The network that the manifest describes
    NETWORK = "network"
    # The values of a layer
    ROW_ORDER = "row_order"
    INPUT_COLUMNS = "input_columns"
    SCALE = "scale"
    ZERO = "zero"
    WEIGHT = "weight"
    PADDING = "padding"
