"""Joint semantic segmentation and depth with a fully connected CRF (Mousavian, Pirsiavash and Kosecka, 2016).

Pure PyTorch, usable alone. Not here: Ray, MLflow and the command line (the package `pipeline`).
"""
