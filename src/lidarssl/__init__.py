"""Self-supervised pretraining of lidar backbones, and the proof of what it is worth."""

__version__ = "0.1.0"
