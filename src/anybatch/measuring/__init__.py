"""Measurements on a task or on anybody's loop, one file each; all leave no trace."""
