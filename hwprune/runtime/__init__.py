"""Export a network and time it where it will run."""
