"""What the set-up of our processes saves."""
