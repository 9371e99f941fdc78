"""What the hardware says: profiles, latency tables, predicted latency."""
