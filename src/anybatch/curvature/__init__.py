"""Curvature of a loss and noise of its gradient: products, eigenvalues, parts and their arithmetic."""
