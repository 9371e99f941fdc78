"""Profiles as if they had been measured on the machine at hand."""

import hwprune
from hwprune.device.profile import DeviceProfile, Hardware
from hwprune.runtime.environment import environment


def hardware_here() -> Hardware:
    """What the machine at hand says of itself."""
    facts = environment()
    return Hardware(vendor="any", model=str(facts["cpu"]), isa=str(facts["isa"]), cores=int(facts["cores"]))


def shipped_as_here() -> DeviceProfile:
    """The shipped profile with a table: its rows are taken for this machine's, whatever that is."""
    shipped = hwprune.load_profile("x86-avx2-ort")
    runtime = shipped.runtime.model_copy(update={"version": ""})
    return shipped.model_copy(update={"hardware": hardware_here(), "runtime": runtime})
