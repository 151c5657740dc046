"""Judges a trial by what the API server and the cloud wrote down, never by what the operator says of itself."""
