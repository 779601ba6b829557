"""What a study asks and what it leaves on disk: settings, trials, the folder of a run."""
