"""InfiniteBench: 12 tasks of 100K tokens and more."""
