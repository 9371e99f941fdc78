"""What a teacher has answered, kept for others that learn from it.

Networks that are trained with the same seed see the same images in the same batches, changed at random
alike. What the teacher has answered one of them, it would answer the next one bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

#: Answers beyond are not kept.
MOST_BYTES = 256 * 2**20


class Answers:
    """The logits of one network, by the batches that it was asked about.

    A batch is known by its content: one that differs in a single bit, or in its order, is asked anew. So the
    numbers are those of a network that is asked every time.

    Args:
        known: What :attr:`known` was before.
        most_bytes: Of all logits.
    """

    def __init__(self, known: Mapping[str, Tensor] | None = None, most_bytes: int = MOST_BYTES) -> None:
        self.known: dict[str, Tensor] = dict(known or {})
        self.added = 0
        self._room = most_bytes - sum(answer.nbytes for answer in self.known.values())

    def to(self, images: Tensor, ask: Callable[[Tensor], Tensor]) -> Tensor:
        """What the network answers to a batch.

        Args:
            images: The batch, shape ``(n, c, h, w)``.
            ask: Calls the network where the batch is new. An answer that random numbers were drawn for is
                not kept.

        Returns:
            Logits ``(n, classes)``.
        """
        digest = _digest(images)
        if digest in self.known:
            return self.known[digest].to(images.device)
        before = torch.get_rng_state()
        answer = ask(images)
        if answer.nbytes <= self._room and torch.equal(before, torch.get_rng_state()):
            self.known[digest] = answer.clone()
            self.added += 1
            self._room -= answer.nbytes
        return answer


def _digest(images: Tensor) -> str:
    """Of the values and the shape of a batch."""
    digest = hashlib.blake2b(f"{images.dtype} {tuple(images.shape)}".encode(), digest_size=16)
    digest.update(images.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
