"""The arithmetic of plans: pure functions of measurements and seeds, numpy only."""
