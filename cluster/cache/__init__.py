"""The teacher cache's job: who computes which rows, on one machine or the whole cluster, and whether they are right.

    job       fills a recipe's cache, or goes on filling it
    builder   one worker's part of it
    crew      workers started, lost and replaced
    verify    rows recomputed
    outlook   whether a cache is worth it
    progress  how far a build has come

Not here: files and formats (`pipelines.cache`).
"""
