"""The search of the CRF's settings: spaces, samplers and trials, the study on Ray Tune, and what it comes to."""
