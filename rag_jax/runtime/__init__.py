"""The machine below everything: files, checkpoints, hosts, signals, devices."""
