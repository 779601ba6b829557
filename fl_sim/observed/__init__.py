"""What a server saw and what attacks guessed, in memory and on disk; the loss of a guess."""
