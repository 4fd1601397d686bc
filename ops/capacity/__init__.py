"""What a run would take on a cluster that is not at hand: speed, bytes, memory, failures, hours and cost.

Not here: what a run on this machine takes (`cluster.forecast`), and whether a cache pays off (`cluster.cache.outlook`).
"""
