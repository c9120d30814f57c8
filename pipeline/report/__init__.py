"""What a run has come to, for its reader: tables, pages and figures. Not here: how it was computed (evaluate.py, search/)."""
