"""`demo`: a teacher, a student alone and a distilled student in a few minutes.

run     the runs and their table
digits  the images: 5,000 MNIST digits from an installed package
"""
