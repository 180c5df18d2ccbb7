"""Is the quantized policy as good, and is it faster? Bags, replay, closed loop, reports."""
