"""The review page: what MLflow holds of an experiment, as one HTML file that needs no network.

page        the command and the page
columns     the columns of the tables
groups      runs that differ only in their seed, and what sets recipes apart
sweeps      the points of a sweep, with their scores
figures     plotly figures
seed_noise  whether a difference exceeds it
"""
