"""What operator and gateway may do, and what of it they do: from the API server's audit log."""
