"""Real machines for this suite, and an operator that makes them."""

from tests.guests import guest, libvirt_config, libvirt_host
from tests.operators import operator

__all__ = ["guest", "libvirt_config", "libvirt_host", "operator"]
