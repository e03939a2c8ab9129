"""Curvature of a loss and the noise of its gradient."""
