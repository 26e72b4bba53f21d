"""rlsuite: reinforcement learning in JAX, thousands of runs in one compiled program. See README.md."""

__version__ = "0.1.0"
