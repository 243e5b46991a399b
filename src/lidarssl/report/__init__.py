"""Tables, curves and pictures of a run, in one self-contained page."""
