"""Plug-ins that make, find and delete machines, and the protocol and test suite they all share.

Belongs here: ``base`` (the protocol), ``errors``, ``registry`` (entry points), ``conformance`` (the suite
every plug-in must pass) and one file or folder per plug-in. May import api, plan, telemetry, settings and
kube. Knows nothing of pools, claims or phases: the engine decides, a plug-in obeys.
"""
