"""A batch system on one machine: what `make demo`, the integration tests and the benchmark share."""
