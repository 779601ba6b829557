"""Write what documents say of the code from the code."""
