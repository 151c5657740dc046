"""The operator's frame: kopf handlers that wake the engine, start-up and clean-up, probes, the lease.

The only importer of kopf. Belongs here: which kind's events wake what, the process' life. A handler may wake a loop;
it decides nothing and writes nothing.
"""
