"""Being written."""

from __future__ import annotations

import libvirt

VERSION = libvirt.getVersion()
