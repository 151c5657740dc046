"""Where the parts meet: observe, plan, act, for every object in a loop of its own.

Belongs here: facts from raw objects, what was last seen of machines, lanes, the loops of pools and providers, the
sweep, the effects. May import everything below (api, plan, telemetry, settings, kube, providers); decides nothing
itself that ``plan`` could decide.
"""
