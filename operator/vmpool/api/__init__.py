"""Shapes: one kind a file, the keys we write on objects, and the generator of ``crds/*.yaml``.

Belongs here: pydantic models of our kinds, names of labels, annotations, finalizers, tags, condition
types. Pure: imports nothing of vmpool, does no I/O, reads no clock.
"""
