"""All layouts of a cluster that the configuration's rules allow, which of them fit, and how long a step takes."""
