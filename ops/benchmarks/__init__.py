"""Measurements: each module is one, run as `python -m ops.benchmarks.<name>`, and writes one JSON file of results.

A number comes with how often it was measured, its spread, the machine and the versions.
"""
