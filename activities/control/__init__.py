"""Effects on the record; run where the database is, never on a host."""
