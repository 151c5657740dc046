"""Benchmarks: what the operator costs, each figure beside a floor that was measured in the same run.

Belongs here: what measures, and what shows figures. It runs real processes (control plane, simulated cloud,
operator) and looks at them from outside; nothing of the product imports it, and it decides nothing that a test should.
"""
