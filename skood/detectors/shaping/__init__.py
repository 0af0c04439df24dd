"""Methods that shape activations and score the logits that follow."""
