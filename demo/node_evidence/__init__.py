"""What ``make evidence-node`` measures: faults, memory, lifecycle, overhead, parity, limits."""
