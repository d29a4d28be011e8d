"""From samples and a backend to a run folder: what is asked, asking, writing down, going on where it stopped."""
