"""A machine's state from libvirt's and from our own phase."""

import libvirt

from vmpool.providers.base import MachineState
from vmpool.providers.libvirt.domain import Phase

_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: (MachineState.RUNNING, ""),
    libvirt.VIR_DOMAIN_BLOCKED: (MachineState.RUNNING, ""),
    libvirt.VIR_DOMAIN_PAUSED: (MachineState.STOPPED, "paused"),
    libvirt.VIR_DOMAIN_PMSUSPENDED: (MachineState.STOPPED, "suspended by the guest"),
    libvirt.VIR_DOMAIN_SHUTDOWN: (MachineState.STOPPED, "shutting down"),
    libvirt.VIR_DOMAIN_SHUTOFF: (MachineState.STOPPED, ""),
    libvirt.VIR_DOMAIN_CRASHED: (MachineState.FAILED, "the guest crashed"),
}
_REASONS = {
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP): (MachineState.CREATING, ""),
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR): (
        MachineState.FAILED,
        "paused by an error of its disk; the storage pool may be full",
    ),
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_CRASHED): (MachineState.FAILED, "the guest crashed"),
    (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED): (
        MachineState.FAILED,
        "the emulator or the guest crashed",
    ),
}
_UNSTARTED = {MachineState.STOPPED, MachineState.FAILED}


def machine_state(phase: Phase, state: int, reason: int) -> tuple[MachineState, str]:
    """Return the state and why, given libvirt's (state, reason) of a domain in this phase of ours."""
    if phase is Phase.LEAVING:
        return MachineState.DELETING, ""
    seen = _REASONS.get((state, reason)) or _STATES.get(state, (MachineState.CREATING, ""))
    if phase is Phase.MAKING and seen[0] in _UNSTARTED:
        return MachineState.CREATING, ""
    return seen
