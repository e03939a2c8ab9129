"""Training: from a Task and a Recipe to records and a Run."""
