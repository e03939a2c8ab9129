"""The networks that the articles use."""
