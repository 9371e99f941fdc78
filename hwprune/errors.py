"""Every error a user can cause, as one tree.

::

    HwpruneError                 what, where, expected, got, what to do next
    ├── InputError               an argument, option or file is not what it should be
    │   ├── ProfileError         a profile or latency table is malformed or missing
    │   ├── WorkloadError        a model or data set cannot be found or made
    │   ├── ArtifactError        a slim folder, checkpoint or output folder is not what it claims
    │   └── MissingPackageError  an optional package is not installed
    ├── GraphError               the network cannot be understood well enough to be cut
    ├── TargetError              the target cannot be met on this device
    ├── MissingRowError          the latency table has no row for an operator
    ├── TrainingError            training went wrong (a loss that is not finite, ...)
    ├── VerificationError        the slim network does not compute what the masked one does
    ├── RuntimeUnavailableError  an inference runtime is missing or refused a model
    └── HostError                another machine cannot be reached, left, or lacks what is needed
"""

from __future__ import annotations


class HwpruneError(Exception):
    """Base of every error that input can cause; its message is complete by itself.

    Args:
        what: What is wrong, as one sentence without a full stop.
        where: The file, row, layer or option it was found in.
        expected: What would have been right.
        got: What was found instead.
        hint: What to do next.

    >>> print(HwpruneError("the batch is empty", where="--data", expected="at least 1 image", got=0))
    the batch is empty (in --data): expected at least 1 image, got 0
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        got: object = None,
        hint: str | None = None,
    ) -> None:
        self.what, self.where, self.expected, self.got, self.hint = what, where, expected, got, hint
        message = what if where is None else f"{what} (in {where})"
        details = [
            f"{label} {value}" for label, value in (("expected", expected), ("got", got)) if value is not None
        ]
        if details:
            message += ": " + ", ".join(details)
        if hint:
            message += f". {hint[0].upper()}{hint[1:]}"
        super().__init__(message)


class InputError(HwpruneError):
    """An argument, option or file is not what it should be."""


class ProfileError(InputError):
    """A device profile or latency table is malformed or missing."""


class WorkloadError(InputError):
    """A model or data set cannot be found or made."""


class ArtifactError(InputError):
    """A slim folder, checkpoint or output folder is not what it claims to be."""


class MissingPackageError(InputError, ImportError):
    """An optional package is not installed; whoever catches import errors catches this one too."""


class GraphError(HwpruneError):
    """The network cannot be understood well enough to be cut."""


class TargetError(HwpruneError):
    """The target cannot be met on this device."""


class MissingRowError(HwpruneError):
    """The latency table has no row for an operator."""


class TrainingError(HwpruneError):
    """Training went wrong, for instance a loss that is not finite."""


class VerificationError(HwpruneError):
    """The slim network does not compute what the masked one computes."""


class RuntimeUnavailableError(HwpruneError):
    """An inference runtime is not installed, or refused a model."""


class HostError(HwpruneError):
    """Another machine cannot be reached, left before it was done, or lacks what is needed there."""
