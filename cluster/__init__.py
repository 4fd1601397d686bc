"""cluster places and drives: the run's configuration, the training loop of one rank, Ray, checkpoints, tracking."""

from cluster import environment

environment.apply()
