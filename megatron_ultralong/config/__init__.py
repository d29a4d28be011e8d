"""The run's configuration: its sections, how TOML is read into them, and the checks across fields."""
