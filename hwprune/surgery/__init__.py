"""From a masked network to a smaller one that computes the same."""
