"""The joint network: its tables, its modules and its starting weights. Not here: the CRF behind it (crf/)."""
