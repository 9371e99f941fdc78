"""What may leave a network together, and what that costs."""
