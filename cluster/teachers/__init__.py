"""A run's teachers, one or several, which answer online or from their caches.

running           the teachers of a run at work, several as one
assembly          from a recipe to each one's network, or to its cache
stored            what a cache must belong to and hold, and the teacher that it stands for
class_statistics  what terms read of a teacher over the whole training set

Not here: what a recipe may say of several (`cluster.recipe.teacher_sections`), and whether a teacher is what it is
taken for (`cluster.training.teacher_check`).
"""
