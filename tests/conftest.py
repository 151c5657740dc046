"""Fixtures that every suite may use."""

from tests.planes import crds_installed, kubectl, namespace, plane, plane_binaries

__all__ = ["crds_installed", "kubectl", "namespace", "plane", "plane_binaries"]
