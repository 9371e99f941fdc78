"""Pure mathematics on norms of shape (..., groups): no module, no device file, no I/O."""
