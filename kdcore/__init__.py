"""kdcore computes: tensors in, tensors out.

Models, taps, terms (the losses), the distiller, metrics, optimisers and schedules. Every line runs on one CPU
in a test. Not here: files, image bytes, ranks, Ray, MLflow.
"""

__version__ = "0.1.0"  # of the whole distribution: the only place that states it
