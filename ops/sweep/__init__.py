"""`sweep`: what a person types, watches and gets for many runs over one cache.

command  the command line's side
view     the live table
report   results as tables and files
plots    results as pictures
"""
