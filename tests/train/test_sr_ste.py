"""SR-STE: the network computes with masked weights, the dense ones are trained."""

import torch
from torch import nn

from hwprune.groups.block import BlockGroups
from hwprune.penalties import nm_mask, sr_ste_gradient
from hwprune.train.sr_ste import masked_forward


def test_sr_ste_trains_the_dense_weights_through_the_masked_ones():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 3, 2), nn.Flatten(), nn.Linear(12, 2))
    weight = model[2].weight.detach().clone()
    mask = nm_mask(weight, 1, 4)
    inputs = torch.randn(5, 4, 3, 3)
    with masked_forward(model, BlockGroups(model), 1):
        hidden = model[1](model[0](inputs)).detach()
        model(inputs).square().sum().backward()
        gradient = model[2].parametrizations.weight.original.grad
        masked = (weight * mask).requires_grad_()
        nn.functional.linear(hidden, masked, model[2].bias).square().sum().backward()
        torch.testing.assert_close(gradient, sr_ste_gradient(masked.grad, weight, mask))
        assert (gradient[~mask] != 0).any()
    assert torch.equal(model[2].weight, weight * mask)
    assert (model[0].weight.movedim(1, -1).reshape(-1, 4) != 0).sum(-1).eq(1).all()
