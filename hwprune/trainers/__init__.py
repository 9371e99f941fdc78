"""Pruning inside other people's trainers: one callback for each, in a module of its own.

``hwprune.trainers.lightning`` and ``hwprune.trainers.transformers`` need the extra of the same name.
"""

from hwprune.trainers.options import Options

__all__ = ["Options"]
