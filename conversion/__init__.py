"""Port the original authors' checkpoints to Transformers."""
