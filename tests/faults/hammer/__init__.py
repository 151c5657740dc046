"""The hammer: operators and gateways are killed every few seconds, for as long as one likes, while people check out.

``python -m tests.faults.hammer --minutes 30 --seed 0``. What is judged: ``judge.py``.
"""
