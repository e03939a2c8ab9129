"""`python -m anybatch`, which torchrun needs: the same as the `anybatch` program."""

from anybatch.cli import script

if __name__ == "__main__":
    script()
