"""What a report says, and its pages. Not here: its files and figures (pipeline/report.py)."""
