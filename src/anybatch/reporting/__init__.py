"""Reading Runs and saying what they show: the report, and the comparison of two arms."""
