"""What runs a trial: processes, gates, sites."""
