"""The record: one aggregate per module, its tables and the queries that touch them. Queries never commit."""
