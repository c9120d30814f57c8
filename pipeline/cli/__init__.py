"""The command line: what each command takes and prints. Not here: what it does (the modules of pipeline/)."""
