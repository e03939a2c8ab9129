"""Curvature of a loss: Hessian-vector products, and the largest eigenvalue that they give."""
