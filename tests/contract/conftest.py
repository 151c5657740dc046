"""Fixtures of the contract tests."""

import pytest

from tests.clouds import make_simcloud, shared_simcloud, simcloud, tenant

pytest.register_assert_rewrite("vmpool.providers.conformance")

__all__ = ["make_simcloud", "shared_simcloud", "simcloud", "tenant"]
