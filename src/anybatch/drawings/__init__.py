"""Pictures of measurements on a matplotlib Axes, one file a kind; `table` finds them."""
