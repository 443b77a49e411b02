"""What every process needs before it can do anything: settings, sealing, telemetry, Temporal client."""
