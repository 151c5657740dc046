"""What the operator says about itself: metric names and log set-up. No logic, no decisions.

Belongs here: every metric, once, and the set-up of structured logs. May import api and plan for names only.
"""
