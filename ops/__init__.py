"""ops asks and explains: the command line, recipes, the demo, and everything a person reads."""
