"""Search spaces: one file each, a function `space()` from config paths (with `/` for `.`) to Optuna distributions.

Not here: how a space is searched (pipeline/search.py), what a setting means (jointseg/crf/settings.py).
"""
