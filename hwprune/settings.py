"""What one run of ``prune`` is asked to do, and what runs hand to each other."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hwprune.device.profile import DeviceProfile
from hwprune.files import sha256_of
from hwprune.targets import Target, describe
from hwprune.train.distillation import Distillation
from hwprune.train.loop import Recipe

#: Passes over the training images after a finished network was corrected, and the part of the learning rate.
CORRECTION_EPOCHS, CORRECTION_RATE = 1, 0.3


@dataclass(frozen=True, slots=True)
class Settings:
    """What one run of ``prune`` is asked to do.

    Attributes:
        model: Built-in name or ``package.module:callable``.
        data: Built-in name or ``package.module:callable``.
        device: Name or folder of the profile.
        target: What to reach.
        recipe: How to train the dense network, and the pruned one where it starts from scratch.
        penalty: Which penalty drives the groups.
        train_images: Use only the first so many training images; ``None`` for all.
        granularity: What a group is.
        weights: File of trained weights for the dense network, which is then not trained.
        fine_tune: How the pruned network is trained where it starts from the dense one's trained weights;
            ``None`` for a start from scratch.
        follows: The target of the run whose pruned network this one starts from; ``None`` for the dense
            network's.
        distillation: How the pruned network learns from the dense one; ``None`` for not at all.
        reconstruct: Training images on which the survivors of a trained network are fitted to what it
            computed before; 0 for none.
        profiles: The folder that profiles were looked for in first, as the user named it.
        further: How it is trained where it starts from a pruned network; by default as ``fine_tune`` says.
    """

    model: str
    data: str
    device: str
    target: Target
    recipe: Recipe
    penalty: str = "envelope"
    train_images: int | None = None
    granularity: str = "channel"
    weights: str | None = None
    fine_tune: Recipe | None = None
    follows: Target | None = None
    distillation: Distillation | None = None
    reconstruct: int = 0
    profiles: str | None = None
    further: Recipe | None = None

    @property
    def pruning_recipe(self) -> Recipe:
        """How the pruned network is trained."""
        if self.follows is not None and self.further is not None:
            return self.further
        return self.fine_tune or self.recipe

    @property
    def correction_recipe(self) -> Recipe:
        """How it is trained once more where it was finished and missed its target."""
        recipe = self.pruning_recipe
        rate = CORRECTION_RATE * recipe.learning_rate
        return replace(recipe, epochs=CORRECTION_EPOCHS, learning_rate=rate)

    def as_record(self) -> dict[str, Any]:
        """The settings as JSON, as the report has them."""
        follows = None if self.follows is None else describe(self.follows)
        return {**asdict(self), "target": describe(self.target), "follows": follows}

    def run_record(self, profile: DeviceProfile) -> dict[str, Any]:
        """The settings, and what tells files apart that go by the same names.

        Args:
            profile: The device as it was loaded, before anything is measured here.
        """
        rules = profile.model_dump(mode="json", include={"rule", "runtime", "hardware"})
        told = hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()
        files = {"profile_sha256": told}
        if self.weights is not None:
            files["weights_sha256"] = sha256_of(Path(self.weights))
        record = self.as_record()
        del record["profiles"]  # the profile itself counts, not where it lies
        if self.further is None:  # runs of earlier versions do not tell
            del record["further"]
        return {**record, **files}

    def dense_record(self) -> dict[str, Any]:
        """What of the settings the dense training depends on."""
        record = self.as_record()
        return {key: record[key] for key in ("model", "data", "train_images", "recipe")}

    def masked_record(self, target: Target) -> dict[str, Any]:
        """What the pruned network at a target depends on, but for the one that it starts from."""
        record = {**self.as_record(), "target": describe(target)}
        del record["follows"], record["profiles"]  # where the device was read from is no part of it
        return record


@dataclass(frozen=True, slots=True)
class Shared:
    """Files that runs hand to each other.

    Attributes:
        dense: The dense training of runs with the same model, data and recipe: read where it exists, written
            where it does not.
        start: Masked weights of a run at a looser target, which this one starts from.
        masked: Where this run leaves its own.
        answers: What the dense network has answered the pruned ones that learn from it.
    """

    dense: Path | None = None
    start: Path | None = None
    masked: Path | None = None
    answers: Path | None = None
