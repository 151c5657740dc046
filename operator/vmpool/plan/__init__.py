"""Decisions: what is seen and the time in, a plan and one explaining sentence out.

Belongs here: the snapshot types, the lifecycle table, the planners, backoff. Pure: imports api only; no asyncio, no
logging, no clock, no randomness (seeds come in as arguments). The same snapshot always gives the same plan.
"""
