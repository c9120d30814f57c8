"""Search spaces, one file each: a function `space()` from config paths (with `/` for `.`) to Optuna distributions.

Where what is drawn depends on what was drawn before, `space(trial)` draws by itself and returns the values by config path;
names it draws beside them are switches, and `switches(settings)` gives their values at given settings.

Not here: how a space is searched (pipeline/search.py), what a setting means (jointseg/crf/settings.py).
"""
