"""What a run's configuration is, and how it is read.

config            the whole, its sections in `sections`, `run_sections`, `teacher_sections` and `about`
rules             what must hold between the sections
reading           a mapping with overrides checked, and written
files             YAML with the files that it starts from
paths             the paths in a configuration
plugins           a user's own code
strict_yaml       which YAML is refused
field_names       the nearest valid name
"""
