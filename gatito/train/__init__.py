"""Training: a loop on Accelerate, and checkpoints that are Hugging Face directories."""
