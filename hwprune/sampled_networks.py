"""Networks at random widths: what a profile's predictions are fitted to and checked on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from hwprune.device.profile import DeviceProfile
from hwprune.errors import GraphError
from hwprune.graph.coupling import find_axes
from hwprune.graph.trace import trace_operators
from hwprune.groups.channel import ChannelGroups
from hwprune.groups.costs import Widths
from hwprune.plan import axis_aligns
from hwprune.surgery.prove import prove
from hwprune.surgery.rebuild import rebuild

#: Narrowest width drawn, as a fraction of the dense one.
LEAST_WIDTH = 0.2
#: Networks that a calibration is fitted to, of any width and of wide ones, and the seeds of the widths; those
#: of a check differ. Of the default networks few weigh more than caches hold unless they are wide.
_CALIBRATION_NETWORKS, _WIDE_NETWORKS, _LEAST_WIDE_WIDTH = 24, 12, 0.7
_CALIBRATION_SEED, _WIDE_SEED = 1_000_003, 1_000_004


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A network and what it is called with.

    Attributes:
        model: The network.
        example: An example input with the batch dimension first.
    """

    model: nn.Module
    example: Tensor


class Narrower:
    """Makes narrower versions of one network.

    Args:
        network: The dense network; not touched.
        profile: Says how many channels leave together.
        aligned: Whether channels leave as the profile says, or one by one wherever the network allows it.

    Raises:
        GraphError: If nothing can be pruned.
    """

    def __init__(self, network: Network, profile: DeviceProfile, *, aligned: bool = True) -> None:
        self._network = network
        axes = find_axes(network.model, network.example)
        operators = trace_operators(network.model, network.example)
        aligns = axis_aligns(axes, operators, profile if aligned else without_steps(profile))
        self._groups = ChannelGroups(
            network.model, prove(network.model, axes, network.example, aligns).axes, aligns
        )

    def random(self, generator: np.random.Generator, least_width: float = LEAST_WIDTH) -> Network:
        """A narrower network with every axis at a random whole number of groups.

        Args:
            generator: Draws the widths.
            least_width: The narrowest width, as a fraction of the dense one.
        """
        groups = self._groups
        steps: Widths = np.array(groups.aligns)
        least = np.maximum(np.ceil(least_width * groups.widths / steps).astype(np.int64), 1)
        most = np.ceil(groups.widths / steps).astype(np.int64)
        widths = np.minimum(generator.integers(least, most + 1) * steps, groups.widths)
        kept = {
            axis.name: np.arange(axis.width) < width for axis, width in zip(groups.axes, widths, strict=True)
        }
        return Network(rebuild(self._network.model, groups.axes, kept), self._network.example)


def without_steps(profile: DeviceProfile) -> DeviceProfile:
    """The profile with channels that leave one by one."""
    one_by_one = {"align": 1, "period": None, "divisor": 1}
    return profile.model_copy(
        update={"rule": tuple(rule.model_copy(update=one_by_one) for rule in profile.rules)}
    )


def at_random_widths(
    networks: Mapping[str, Network],
    profile: DeviceProfile,
    count: int,
    seed: int,
    *,
    aligned: bool = True,
    least_width: float = LEAST_WIDTH,
) -> Iterator[tuple[str, Network]]:
    """Narrower versions of networks, taking turns, at random widths.

    Args:
        networks: Name to dense network.
        profile: Says how many channels leave together.
        count: How many to make in all.
        seed: Seed of the widths.
        aligned: Whether the widths are those that the profile's rules allow, or any.
        least_width: The narrowest width, as a fraction of the dense one.

    Yields:
        A name that says which network it is, and the network. One that nothing can be pruned of comes once,
        as it is, whatever the seed and the count.
    """
    generator = np.random.default_rng(seed if aligned else [seed, 1])
    makers: dict[str, Narrower] = {}
    whole = 0
    for name, network in networks.items() if count else ():
        try:
            makers[name] = Narrower(network, profile, aligned=aligned)
        except GraphError:
            whole += 1
            yield name, network
    for index in range(count - whole if makers else 0):
        turn, place = divmod(index, len(makers))
        name = list(makers)[place]
        yield f"{name} #{turn + 1}", makers[name].random(generator, least_width)


def for_calibration(networks: Mapping[str, Network], profile: DeviceProfile) -> dict[str, Network]:
    """Networks to fit a profile's calibration to: as a check draws them, and wide ones besides.

    Args:
        networks: Name to dense network.
        profile: Says how many channels leave together.
    """
    drawn = dict(at_random_widths(networks, profile, _CALIBRATION_NETWORKS, _CALIBRATION_SEED))
    wide = at_random_widths(networks, profile, _WIDE_NETWORKS, _WIDE_SEED, least_width=_LEAST_WIDE_WIDTH)
    return drawn | {name if name in networks else f"{name} wide": network for name, network in wide}
