"""What can go wrong around the local control plane; each message says what to do next.

::

    DevError
    ├── BinariesMissing  the folder of binaries that the user named is incomplete
    ├── BuildFailed      the Go toolchain, or getting one, failed
    ├── Busy             another process holds the lock for too long
    ├── ComponentFailed  a component died or never became ready
    │   └── PortTaken    it died because somebody else took its port
    └── NotRunning       the verb needs a control plane that was started
"""


class DevError(Exception):
    """Base of everything that ``vmpool dev`` reports to its user as one message."""


class BinariesMissing(DevError):
    """The folder of binaries that the user named lacks one that nothing runs without."""


class BuildFailed(DevError):
    """A build or the installation of the toolchain ended with an error."""


class Busy(DevError):
    """Another process kept the lock beyond the deadline."""


class ComponentFailed(DevError):
    """A component ended, or was not ready within its deadline; carries the end of its log."""


class PortTaken(ComponentFailed):
    """A component ended because its port was taken between our choice and its start."""


class NotRunning(DevError):
    """There is no control plane to work on."""
