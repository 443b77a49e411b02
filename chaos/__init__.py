"""Load and kills at once, then an audit: a development tool, not part of the product."""
