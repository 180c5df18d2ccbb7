"""y = x · PackedLinear^T: one oracle, one kernel for the CPU, and the choice between them."""
