"""Deterministic stories of operations. Imports: standard library, temporalio, domain. Nothing else."""
