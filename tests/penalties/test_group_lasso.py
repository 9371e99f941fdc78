"""The group lasso and the l1 norm: a proximal operator and that of the conjugate make up the whole."""

import pytest
import torch

from hwprune.penalties import GroupLasso, soft_threshold


def random_weights(*shape):
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("strength", [0.1, 1.0, 3.0])
def test_moreau_identity_of_the_group_lasso(strength):
    """``w = prox_{L f}(w) + L P(w / L)``: the conjugate of a sum of norms is 0 on their dual balls."""
    weights = random_weights(40, 3)
    point = weights * GroupLasso().prox_factors(weights.norm(dim=1), strength)[:, None]
    scaled = weights / strength
    projected = scaled / scaled.norm(dim=1, keepdim=True).clamp_min(1.0)
    torch.testing.assert_close(point + strength * projected, weights)


@pytest.mark.parametrize("strength", [0.1, 1.0, 3.0])
def test_moreau_identity_of_the_l1_norm(strength):
    weights = random_weights(100)
    point = soft_threshold(weights, strength)
    torch.testing.assert_close(point + strength * (weights / strength).clamp(-1.0, 1.0), weights)
    by_groups = weights * GroupLasso("l1").prox_factors(weights.abs(), strength)
    torch.testing.assert_close(by_groups, point)
