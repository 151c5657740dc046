"""Fixtures of the gateway's tests."""

from tests.gateways import gateway, make_gateway

__all__ = ["gateway", "make_gateway"]
