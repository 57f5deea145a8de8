"""What a person or a clock starts: the command, Prefect flows, presets."""
