"""``duranova demo``: a guest's whole life through the real ``openstack`` client, for everybody to see."""

from cli.demo.story import DemoOptions, demo

__all__ = ["DemoOptions", "demo"]
