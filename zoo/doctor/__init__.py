"""``zoo doctor``: what this machine has, what is wrong with it, and the command that mends it.

Nothing here may need what it examines: packages are imported in another process, or inside the
check that is about them.
"""
