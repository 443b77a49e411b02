"""Host networking, part by part: records, segments, filters, DHCP, metadata; ``virt.nics`` is the front."""
