"""Many runs of one recipe over shared caches, driven by Ray Tune and restored from a journal.

config    what SPACE.yaml says
axes      of its space: values, ranges, pairs of taps
space     points, and the runs they make
caches    which runs share a cache
plan      all of that before anything starts, with its cost
search    which point comes next
stoppers  the rules that end runs early, one per file
scheduler which run goes on after a report
journal   what has been decided and measured
runs      what a trial gets, and how its run begins and ends
manager   the process that does this for all trials
trial     one run inside a trial's process
tracking  the sweep and its runs in MLflow
run       all of it together
"""
