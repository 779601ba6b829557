"""What holds against any attacker, and what attackers reach."""
