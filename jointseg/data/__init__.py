"""Frames and what training sees of them: NYU's own files, the prepared store, views, synthetic rooms.

Not here: the classes (../labels.py), the training loop (../training.py).
"""
