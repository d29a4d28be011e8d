"""What answers: a model behind one interface."""
