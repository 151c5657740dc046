"""vmpool keeps pools of ready-to-use virtual machines as Kubernetes objects.

Each sub-package is a room of its own; its first docstring says what belongs there and what it may
import. Data flows one way: api < plan < telemetry, settings < kube < providers < engine < rim, cli.
The import contracts in ``.importlinter`` hold it.
"""

__version__ = "0.1.0"
