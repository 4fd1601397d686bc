"""A training run: started, stepped, checkpointed, and continued after whatever is lost.

launch      the one call that starts or continues a run
fitting     the driver of a run's workers, without torch
worker      what one rank does
checkpoint  everything a run needs to go on at its next step
recovery    what to do when workers are lost
progress    how far a run has come, for its watchers
"""
