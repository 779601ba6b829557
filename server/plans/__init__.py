"""What a server does to model and weights before it hands them out."""
