"""Shared by the tests of K-FAC."""
