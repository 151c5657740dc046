"""Which trials there are, which have been run, and what they have shown."""
