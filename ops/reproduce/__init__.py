"""`reproduce`: the papers' rows on machines that are free for minutes at a time, in slices that can end anywhere."""
