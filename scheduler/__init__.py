"""Pure placement: filters and weighers over host snapshots. The plug-in surface."""
