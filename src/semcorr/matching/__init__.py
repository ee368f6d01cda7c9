"""From features to points: pure functions of tensors."""
