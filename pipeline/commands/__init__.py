"""What the commands of `jointseg` have in common, and some of them. Not here: the others (pipeline/cli.py)."""
