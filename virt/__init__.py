"""The hypervisor seam: one driver contract, a complete fake and the libvirt implementation."""
