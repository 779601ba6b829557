"""What noise guarantees against any attacker: epsilon of differential privacy, and bounds."""
