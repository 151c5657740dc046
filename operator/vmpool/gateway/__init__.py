"""The REST API that VMPooler's clients speak: stateless, several replicas behind one Service.

What belongs here: endpoints, who asks and whether they may, bounds and rate limits, the gateway's process. What a claim
is, which VM may be handed out and how it is written belongs to plan and engine.

May import everything below it, of the engine only what is no loop: facts, the ready index, the binder, access reviews.
"""
