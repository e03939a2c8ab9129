"""anybatch (interface being written)."""
