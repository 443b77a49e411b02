"""The effects: control activities beside the database, host activities beside a hypervisor."""
