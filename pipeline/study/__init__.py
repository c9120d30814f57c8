"""A study of the CRF's settings: spaces, samplers, trials, Ray Tune, its result. Not here: its phase (pipeline/search.py)."""
