"""What the demo shows, measured: which factors its directions carry, and what steering along them does."""
