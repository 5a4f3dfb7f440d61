"""The floors of a generalist: retrieve-and-play and behaviour cloning, played by the evaluation of a checkpoint."""
