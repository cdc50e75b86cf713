"""Measures the speed of optimizer steps, training steps and reading images."""
