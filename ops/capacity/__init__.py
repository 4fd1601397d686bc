"""What a run takes on a cluster that nobody has yet: speed, bytes, memory, failures, hours and cost.

Not here: what a run on this machine takes (`cluster.forecast`), and whether a cache pays (`cluster.cache.outlook`).
"""
