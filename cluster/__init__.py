"""cluster places and drives runs: their configuration, the training loop of one rank, Ray, checkpoints, tracking."""

from cluster import environment

environment.apply()
