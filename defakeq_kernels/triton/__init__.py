"""The GPU kernels, in Triton, from the same storage format as the CPU's."""
