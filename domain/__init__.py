"""Pure core: what a cloud is, without I/O, clock or framework."""
