"""``vmpool`` on the command line, one file a verb. Thin: prints, asks, calls; decides nothing.

May import everything but rim (``__main__`` mounts the operator itself).
"""
