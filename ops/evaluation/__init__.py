"""What a network is worth: measures on a validation set, answers for photographs, frozen features.

subjects     what can be evaluated: a run, a file of weights, a recipe
evaluate     every measure, next to the teacher's
image_names  names for sets of images, which never collide
figures      pictures of an evaluation
predict      photographs of any folder
probe        frozen features judged by a linear classifier and by nearest neighbours
"""
