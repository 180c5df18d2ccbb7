"""The bit widths that a row may have, ascending."""

WIDTHS = (0, 2, 3, 4, 8, 16)
"""0 prunes the row; 16 leaves it in BF16."""

GRID_WIDTHS = (2, 3, 4, 8)
"""Widths whose rows are codes on a uniform grid."""
