"""fractal-k8s: maps where training works and breaks, and measures how rough the edge is."""

__version__ = "0.1.0"
