"""The CUDA wing: CUDA C and its launchers."""
