"""A proxy between an operator and its far sides that can break any request at any point."""
