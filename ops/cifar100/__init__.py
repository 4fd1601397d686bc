"""CIFAR-100: its images as a folder, and the rows of the published tables as recipes.

images   from the published files to an image folder
rows     13 pairs of networks and 27 methods, combined into recipes
methods  each method's losses and settings
terms    the terms that methods add to the labels' loss
tables   the accuracies that the papers publish
"""
