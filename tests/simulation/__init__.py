"""The operator's engine on a virtual clock, against models of the API server and of a cloud, with faults by seed."""
