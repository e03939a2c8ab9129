"""Claims of papers and articles as experiments: arms searched with equal effort, fresh seeds."""
