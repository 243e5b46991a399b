"""Builds loaders, trainer and resume: the one place that knows the trainer."""
