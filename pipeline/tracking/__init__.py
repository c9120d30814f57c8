"""What goes to MLflow, what comes back from it, and what happens where it cannot be reached."""
