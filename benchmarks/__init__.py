"""Measurements as ratios in one run, against what people would otherwise use."""
