"""``vmpool`` on the command line: thin, decides nothing.

Belongs here: one file a verb, what it prints and asks; the generator of the files that are made from the code.
May import everything but rim (``__main__`` mounts the operator itself).
"""
