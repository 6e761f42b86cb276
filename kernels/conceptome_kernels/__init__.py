"""Compute kernels of the dictionaries, and the float64 reference that specifies them."""
