"""What the commands do, one file a command; `cli` holds their options."""
