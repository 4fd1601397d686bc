"""What a network sees, as pure functions of (plan seed, view number, sample id); no image is touched here.

policy  the fields of a recipe's `views` section, and which of them decide how a view looks
plan    views and epoch order of one data set; the fingerprint that identifies caches and checkpoints
draws   crop, flip, colour, erasing and mixing, from random words
order   permutations that need no memory
philox  the counter-based generator
exact   logarithm and exponential with the same bits on every machine
"""
