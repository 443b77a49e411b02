"""Pure decisions over host snapshots: filters refuse, weighers rank, and every refusal has a reason.

A filter or weigher of another project registers a class under the entry-point group
``duranova.filters`` or ``duranova.weighers`` and is switched on by its name in the settings.
"""
