"""A strict reader of the qcow2 format: what it accepts holds one disk and refers to nothing outside itself. Pure."""
