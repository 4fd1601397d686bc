"""`doctor`: what this machine has, what it lacks, and what to do about it.

report    all checks as one table
probes    the checks
decoders  the check of DALI's decoding of regions
findings  what a check returns
"""
