"""Data sets, loaders and augmentation: one data set or loader per file."""
