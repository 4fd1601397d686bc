"""How much a teacher's layer has to teach: the layer-quality score, its collection over images, and the taps to ask.

Inside: `blocks` (candidate taps of a network) and `score` (Q of one layer's features) import nothing here; `collect`
runs over batches and uses `score`.
"""
