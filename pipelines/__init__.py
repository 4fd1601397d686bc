"""Bytes to batches, and teacher outputs to Arrow and back.

What a network sees is a pure function of (plan seed, view number, sample id): `plan` gives the numbers, `render` and
the loaders turn them into pixels. Where a batch goes, and on which rank, is not decided here.
"""
