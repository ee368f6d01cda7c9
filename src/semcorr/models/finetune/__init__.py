"""Fine-tuning: which weights of a backbone are trained, and what is added to it."""
