"""Teacher outputs in Arrow: computed once, replayed exactly, never stale.

    columns   what is stored of a view, and how many bytes it takes
    sparse    logits in a few dozen bytes, for every temperature
    projection  feature maps in fewer channels
    fitting   what both of these are fitted to, and their measured error
    store     shards: written whole or not at all, found again by listing
    manifest  what the shards belong to, and the refusal of everything else
    reader    batches of rows out of memory-mapped shards
    local     one copy per node of a cache in object storage

Not here: computing the outputs (`cluster.cache.job`).
"""
