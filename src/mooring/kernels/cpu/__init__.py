"""The step on a CPU, compiled by Numba for the processor it runs on; the extra ``mooring[fast]``."""
