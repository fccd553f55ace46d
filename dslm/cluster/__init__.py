"""Where to train: hosts, filters, devices, local detection, preflight checks."""
