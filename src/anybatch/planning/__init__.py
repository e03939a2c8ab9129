"""Which batch size, learning rate and schedule, how long it will take, how sure that is."""
