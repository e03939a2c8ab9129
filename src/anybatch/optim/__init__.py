"""Update rules and gradient transforms: one per file."""
