"""Proximal training: the optimiser wrapper, schedules, the loop, checkpoints."""
