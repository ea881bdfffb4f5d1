"""What the larger benchmarks share; each of them has the folder above this one on `sys.path`."""
