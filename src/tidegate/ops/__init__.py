"""Pure functions of tensors, time first: `tidegate.ops.gru` is the recurrence, a file for each back end."""
