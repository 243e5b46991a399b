"""One experiment on disk: what the command line runs, from a recipe to a run folder."""
