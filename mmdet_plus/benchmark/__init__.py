"""Measured speed: what ``tools/benchmark.py`` does. Figures are ratios within one run."""
