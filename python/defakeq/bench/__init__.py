"""Microbenchmarks: the kernels on layer shapes of real detectors, beside other engines."""
