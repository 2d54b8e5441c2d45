"""Microbenchmarks of blocks: honest times beside their peers, their float64 error and the machine's limits."""
