"""Effects on one hypervisor; run on queue host:<name>, without a database."""
