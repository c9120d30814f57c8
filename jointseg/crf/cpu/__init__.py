"""The CRF on CPUs, compiled by numba: rows of channels as vectors, threads, lattices, mean field in one pass over the pixels.

Not here: what is computed, which mean_field.py and filters/exact.py say in plain torch.
"""
