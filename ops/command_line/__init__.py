"""What may be typed: every command's arguments, and the function that each calls by name.

Nothing here imports what does the work, so that `--help` waits for neither torch nor Ray.

parser         one parser for all commands
commands       most commands
clusters       `sweep` and `submit`
students       the commands for a finished student
signing        `keys` and `sign`
hubs           `push`
data           the actions of `data`
demo_networks  the networks of `demo`
limits         choices and limits shared with the modules behind the commands
"""
