"""The NumPy wing: the definition of every operation, in readable NumPy."""
