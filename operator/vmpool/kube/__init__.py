"""The only room that talks to the Kubernetes API server.

Belongs here: the typed errors (``errors``), the thin client (``client`` on ``transport``), the mirror of one
kind (``mirror``, its pure core in ``store``), the leader lease (``lease``) and the event recorder (``events``).
May import api, plan, telemetry and settings. It is the sole importer of ``kubernetes``: configuration,
authentication, TLS and the lease's requests are that library's; the hot path is ours, on its session.
"""
