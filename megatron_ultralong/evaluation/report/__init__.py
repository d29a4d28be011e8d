"""Results for the eye: plots and one HTML page."""
