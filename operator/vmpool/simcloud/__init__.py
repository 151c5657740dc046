"""``vmpool simcloud``: a small cloud of its own process, with a durable ledger and failures on demand.

Belongs here: the HTTP server, the SQLite ledger, the fault rules. It is the far side, so it imports nothing of
vmpool but this package; the ``simulated`` provider talks HTTP to it like to any other cloud.
"""
