"""Which channels of a network are tied, and which operators it runs."""
