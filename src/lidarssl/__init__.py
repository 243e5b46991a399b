"""Self-supervised pretraining on lidar and images, and the proof of what it is worth."""

__version__ = "0.1.0"
