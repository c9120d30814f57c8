"""The pipeline: Ray Train, Ray Tune with Optuna, MLflow and the command line round `jointseg`. It is thin."""
