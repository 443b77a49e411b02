"""The libvirt driver; connection.py is the only importer of libvirt."""
