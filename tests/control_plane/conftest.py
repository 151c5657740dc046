"""Tests against a real etcd and kube-apiserver; the fixtures are in ``tests/planes.py`` and ``tests/api.py``."""

from tests.api import api, shared_namespace

__all__ = ["api", "shared_namespace"]
