"""Requests for rows of a view in, batches out: by DALI, by Pillow, or from the device's memory.

`base` is what they share, `render` what is done with pictures once they are cropped, `choose` builds the one that is
asked for, `paired` asks two at once. A loader's pixels depend only on the view and the sample id.
"""
